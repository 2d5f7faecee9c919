"""The base class of the events of a run."""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import ClassVar, Self

from model.settings import field_types, fit
from shards import jsonl


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run, `time` seconds after 1970.

    A line has the name of the event under "event", then `time`, then the fields of its class.
    """

    name: ClassVar[str]
    time: float = field(default_factory=time.time)

    def describe(self) -> str:
        """Return one line about this event for people."""
        raise NotImplementedError

    def to_json(self) -> jsonl.Row:
        """Return the row of this event."""
        return {"event": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, row: jsonl.Row) -> Self:
        """Rebuild the event of a row; fields that this class does not know are ignored.

        Raises:
            TypeError: A field is missing.
            SettingError: A field has another type.
        """
        types = {f.name: field_types(cls)[f.name] for f in dataclasses.fields(cls)}
        return cls(**{name: fit(row[name], types[name], name) for name in types.keys() & row})
