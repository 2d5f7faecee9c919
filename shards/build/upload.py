"""A shard set below a URL: shards are built one by one in a folder here and sent when finished."""

from shards.build.writer import STATE, Job, Made, receipt_path, write_shard
from shards.doctor import refuse
from shards.format.index import offsets_path
from shards.remote import RemoteFolder


def send_shard(job: Job, remote: RemoteFolder) -> Made:
    """Make a shard and send it, unless an earlier run has; nothing of it is left here."""
    made = _sent_earlier(job, remote)
    if made is None:
        receipt_path(job.tar).parent.mkdir(parents=True, exist_ok=True)
        made = write_shard(job)
        remote.send(job.tar, job.tar.name)
        remote.send(offsets_path(job.tar), offsets_path(job.tar).name)
        remote.send(receipt_path(job.tar), f"{STATE}/{receipt_path(job.tar).name}")
    elif job.strict:
        refuse(made.findings)
    for path in (job.tar, offsets_path(job.tar), receipt_path(job.tar)):
        path.unlink(missing_ok=True)
    return made


def _sent_earlier(job: Job, remote: RemoteFolder) -> Made | None:
    """What a run sent that was made from the same inputs, if it is there."""
    name = f"{STATE}/{receipt_path(job.tar).name}"
    written = remote.info(name)
    if written is None or written.changed <= job.changed:
        return None
    made = Made.of(remote.read(name), job)
    if made is None:
        return None
    expected = (
        (job.tar.name, made.shard.bytes),
        (
            offsets_path(job.tar).name,
            8 * (made.shard.samples + 1),
        ),
    )
    for file, size in expected:
        found = remote.info(file)
        if found is None or found.bytes != size:
            return None
    return made
