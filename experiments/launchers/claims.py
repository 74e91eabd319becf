"""Which launcher works on a point, where several share a storage."""

import fcntl
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from experiments.launchers.storage import Storage

SECONDS_BETWEEN_BEATS = 5.0
# An owner whose heart has not beaten for so long has gone.
SECONDS_TO_STALE = 60.0
# Time in which this launcher did not look says nothing of the others' hearts.
_LONGEST_LOOK_SECONDS = 5.0

_CLAIMS = sa.Table(
    "sweep_claims",
    sa.MetaData(),
    sa.Column("study", sa.String(255), primary_key=True),
    sa.Column("point", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),
)
Key = tuple[str, str]  # study and point


class Claims:
    """The claims of one launcher, a row each, in a table beside Optuna's.

    Only one launcher can insert a point's row, or put its name into the row of one that
    has gone. A thread counts the rows up, so that a launcher which trains by itself has
    a heartbeat too; another launcher takes a row that has not changed for
    `SECONDS_TO_STALE` on its own clock. That the owner's process has ended is known at
    once where both share a folder on one machine.

    Attributes:
      owner: this launcher's name.
      lost: claims that another launcher has taken meanwhile.
    """

    def __init__(self, storage: Storage, folder: pathlib.Path):
        """Makes the table.

        Args:
          storage: of the sweep.
          folder: for the lock that says whether the launcher's process lives.
        """
        self._engine = storage.engine
        self._folder = folder
        host = socket.gethostname()
        self.owner = f"{host}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.lost: set[Key] = set()
        self._held: set[Key] = set()
        self._seen: dict[Key, tuple[str, int]] = {}
        self._ages: dict[Key, float] = {}
        self._looked = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        try:
            _CLAIMS.create(self._engine, checkfirst=True)
        except SQLAlchemyError:  # another launcher has just made it, or it is away
            if not sa.inspect(self._engine).has_table(_CLAIMS.name):
                raise

    def __enter__(self) -> "Claims":
        path = self._lock_of(self.owner)
        self._lock = path.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the heartbeat has to do
            path.unlink()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._lock.close()
        try:
            with self._engine.begin() as connection:
                mine = _CLAIMS.c.owner == self.owner
                connection.execute(sa.delete(_CLAIMS).where(mine))
                owners = connection.execute(sa.select(_CLAIMS.c.owner)).scalars()
                needed = {self._lock_of(owner) for owner in owners}
        except SQLAlchemyError:
            return  # the lock that is free now says that the claims are void
        for path in self._folder.glob("*.lock"):
            if path not in needed and _is_free(path):
                path.unlink(missing_ok=True)

    def take(self, keys: Sequence[Key], room: int) -> list[Key]:
        """Claims points that nobody works on, at most `room`, the first ones first."""
        studies = {study for study, _ in keys}
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(_CLAIMS).where(_CLAIMS.c.study.in_(studies))
            ).all()
        found = {(row.study, row.point): (row.owner, row.beat) for row in rows}
        self._watch(found)
        alive: dict[str, bool] = {}
        taken = []
        for key in keys:
            if len(taken) == room:
                break
            owner, beat = found.get(key, ("", 0))
            if owner and owner not in alive:
                alive[owner] = not self._has_ended(owner)
            stale = self._ages.get(key, 0.0) > SECONDS_TO_STALE
            if not owner:
                got = self._insert(key)
            elif owner == self.owner:
                got = True
            else:
                got = (stale or not alive[owner]) and self._inherit(key, beat)
            if got:
                taken.append(key)
        self._held |= set(taken)
        self.lost -= set(taken)
        return taken

    def holds(self, key: Key) -> bool:
        """Whether this launcher has the claim, as far as it knows."""
        return key in self._held and key not in self.lost

    def release(self, key: Key) -> None:
        """Gives a claim back, if this launcher has it."""
        if key not in self._held:
            return
        mine = sa.delete(_CLAIMS).where(*_is(key), _CLAIMS.c.owner == self.owner)
        with self._engine.begin() as connection:
            connection.execute(mine)
        self._held.discard(key)
        self.lost.discard(key)

    def _insert(self, key: Key) -> bool:
        values = {"study": key[0], "point": key[1], "owner": self.owner, "beat": 0}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_CLAIMS).values(values))
        except IntegrityError:  # another launcher was quicker
            return False
        return True

    def _inherit(self, key: Key, beat: int) -> bool:
        """Takes the claim of an owner that has gone, if it has not come back."""
        unchanged = (_CLAIMS.c.owner == self._seen[key][0], _CLAIMS.c.beat == beat)
        change = sa.update(_CLAIMS).where(*_is(key), *unchanged)
        with self._engine.begin() as connection:
            done = connection.execute(change.values(owner=self.owner, beat=beat + 1))
            return done.rowcount == 1

    def _watch(self, found: dict[Key, tuple[str, int]]) -> None:
        """Counts for how long each row has been seen unchanged."""
        now = time.monotonic()
        elapsed = min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        self._ages = {
            key: self._ages.get(key, 0.0) + elapsed
            if self._seen.get(key) == row
            else 0.0
            for key, row in found.items()
        }
        self._seen = found

    def _has_ended(self, owner: str) -> bool:
        """Whether the owner was a process of this machine and folder, and has ended."""
        here = owner.partition("/")[0] == self.owner.partition("/")[0]
        return here and _is_free(self._lock_of(owner))

    def _lock_of(self, owner: str) -> pathlib.Path:
        return self._folder / (owner.replace("/", "_") + ".lock")

    def _beat(self) -> None:
        mine = _CLAIMS.c.owner == self.owner
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            before = set(self._held)
            try:
                with self._engine.begin() as connection:
                    count_up = sa.update(_CLAIMS).where(mine)
                    connection.execute(count_up.values(beat=_CLAIMS.c.beat + 1))
                    kept = connection.execute(
                        sa.select(_CLAIMS.c.study, _CLAIMS.c.point).where(mine)
                    )
                    kept = {(row.study, row.point) for row in kept}
            except SQLAlchemyError:
                continue  # it is away: nobody else can take a claim either
            self.lost |= (before & self._held) - kept


def _is_free(path: pathlib.Path) -> bool:
    """Whether there is such a file, and no process holds its lock."""
    try:
        with path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is(key: Key) -> tuple:
    return _CLAIMS.c.study == key[0], _CLAIMS.c.point == key[1]
