"""One shard behind a URL: built in a folder on this machine, sent, and removed here."""

from shards.build.plan import STATE, ShardPlan
from shards.build.writer import BuiltShard, write_shard
from shards.doctor import refuse
from shards.remote import RemoteFolder


def send_shard(plan: ShardPlan, remote: RemoteFolder) -> BuiltShard:
    """Build a shard and send it, unless an earlier run has sent it; keep no copy here.

    The receipt is sent last, so a shard with a receipt is complete.

    Raises:
        Failed: The server does not answer.
        DataError, OSError: As `write_shard`.
    """
    built = _sent_earlier(plan, remote)
    if built is None:
        plan.receipt.parent.mkdir(parents=True, exist_ok=True)
        built = write_shard(plan)
        remote.send(plan.tar, plan.tar.name)
        remote.send(plan.offsets, plan.offsets.name)
        remote.send(plan.receipt, _receipt_name(plan))
    elif plan.strict:
        refuse(built.findings)
    for path in (plan.tar, plan.offsets, plan.receipt):
        path.unlink(missing_ok=True)
    return built


def _sent_earlier(plan: ShardPlan, remote: RemoteFolder) -> BuiltShard | None:
    """Return the shard if an earlier run built it from the same inputs and sent all of it."""
    written = remote.info(_receipt_name(plan))
    if written is None or written.changed <= plan.changed:
        return None
    built = BuiltShard.from_receipt(remote.read(_receipt_name(plan)), plan)
    if built is None:
        return None
    sizes = {
        plan.tar.name: built.shard.bytes,
        plan.offsets.name: 8 * (built.shard.samples + 1),  # uint64 per sample, and the end
    }
    found = {name: remote.info(name) for name in sizes}
    complete = all((info := found[name]) and info.bytes == size for name, size in sizes.items())
    return built if complete else None


def _receipt_name(plan: ShardPlan) -> str:
    return f"{STATE}/{plan.receipt.name}"
