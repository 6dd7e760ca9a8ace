"""The engine cache: engines kept between runs, each under the key of everything that it depends on (`engine_key`).

An entry is an engine and its manifest, `<submodule>-<digest of the key>.engine` and `.manifest.json`. It is used when
nobody else can have written it, every byte of the engine is as it was written and the manifest holds the very key that
is asked for; anything else is built again. An engine is code that runs with our rights: folder and files must belong to
this user, or to root, and others must not be able to write to them. The manifest's time of modification says when the
entry was last used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from ..common.paths import user_cache
from ..common.private_folder import distrust, make_private
from ..errors import Gr00tError, RecordError
from .files import engine_paths, load, verify, write_engine
from .key import Key, stem_of
from .manifest import Description, EngineFile, Manifest, read_manifest

VARIABLE = "GR00T_TRT_ENGINE_CACHE"
OFF = "off"
LOCK_TIMEOUT_S = 1800.0
"""How long a process waits for another one that builds the same engine, before it builds one of its own."""

_ABANDONED_S = 3600.0
"""Age from which a half-written file belongs to nobody any more."""


def open_cache(setting: str | Path | None = None) -> EngineCache | None:
    """The cache that a setting stands for: a folder, or ``off`` for none.

    Args:
        setting: None takes the environment variable GR00T_TRT_ENGINE_CACHE, and without it
            ``$XDG_CACHE_HOME/gr00t_trt/engines`` or ``~/.cache/gr00t_trt/engines``.
    """
    setting = setting or os.environ.get(VARIABLE)
    if setting is None or setting == "":
        return EngineCache(user_cache() / "engines")
    return None if str(setting).lower() == OFF else EngineCache(Path(setting).expanduser())


@dataclass(frozen=True)
class Cached:
    """An engine from the cache, every byte of it verified.

    Attributes:
        plan: Its bytes, where they were asked for.
    """

    file: EngineFile
    manifest: Manifest
    plan: bytes | None = None


@dataclass(frozen=True)
class Entry:
    """What lies in the cache, looked at without its key.

    Attributes:
        stem: File name without the endings.
        manifest: None where it is missing or unreadable.
        damage: Why it can not be used, in words; None for a whole one.
        bytes: Of all its files.
        used: When it was last used, in seconds since the epoch.
    """

    stem: str
    manifest: Manifest | None
    damage: str | None
    bytes: int
    used: float


class EngineCache:
    """A folder of engines, made for this user alone when the first engine is put into it.

    Attributes:
        said: Notes about it that the user has been given, and need not be given for each engine.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.said: set[str] = set()

    def get(self, key: Key, *, read: bool = False) -> Cached | None:
        """The engine of this key, verified; None when there is none.

        Args:
            read: Its bytes are wanted too; without, they are hashed and not held.
        Raises: RecordError for one that is truncated, altered, of another key, or cannot be read, and for one that
            somebody else may have put there.
        """
        engine, manifest_path = engine_paths(self.folder, stem_of(key))
        if not engine.exists() and not manifest_path.exists():
            return None
        for path in (self.folder, engine, manifest_path):
            _refuse_foreign(path)
        if read_manifest(manifest_path).key != key:
            raise RecordError(f"{engine}: it was built for something else than its name says")
        manifest, plan = load(engine) if read else (verify(engine), None)
        with suppress(OSError):  # somebody else's cache can be read and not marked
            os.utime(manifest_path)
        return Cached(EngineFile(engine, manifest_path, manifest.bytes), manifest, plan)

    def put(self, key: Key, plan: bytes | memoryview, description: Description) -> EngineFile:
        """Keep an engine under its key, whole or not at all; an older one of the same key is replaced.

        Args:
            plan: The serialised engine.
        Raises: RecordError for a folder that cannot be written or that others can write to, or a full disk.
        """
        self._make()
        _refuse_foreign(self.folder)
        return write_engine(self.folder, str(key["submodule"]), plan, description=description, key=key)

    @contextmanager
    def lock(self, stem: str, *, timeout_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
        """Keep other processes from building or removing this entry; the system frees what a killed one held.

        Args:
            timeout_s: How long to wait for another holder; 0 tries once.
            waiting: Called once, before waiting.
        Yields: False where nothing is locked, because file or system allow no lock (a read-only folder, some network
            disks); whoever goes on then must write what it writes as a whole.
        Raises: TimeoutError when another process holds it for longer.
        """
        self._make()
        if distrust(self.folder) is not None:  # nothing in it is used, and a lock there may be a link to anywhere
            yield False
            return
        lock = FileLock(self._lock_path(stem))
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if timeout_s <= 0:
                    raise
                waiting()
                lock.acquire(timeout=timeout_s, poll_interval=0.1)
        except Timeout:
            raise
        except (OSError, NotImplementedError):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def stems(self) -> list[str]:
        """Names of all entries, whole or not, without reading them. Raises: RecordError for an unreadable folder."""
        endings = (".engine", ".manifest.json")
        names = self._names()
        return sorted({n.removesuffix(e) for n in names for e in endings if n.endswith(e) and not n.startswith(".")})

    def entry(self, stem: str, *, every_byte: bool = True) -> Entry:
        """Look at one entry; with `every_byte` off, an altered engine of the right size passes for a whole one."""
        paths = engine_paths(self.folder, stem)
        manifest, damage = None, None
        try:
            manifest = read_manifest(paths[1])
            if not manifest.key or stem_of(manifest.key) != stem:
                damage = "its key is not the one in its name"
            elif foreign := next((why for path in (self.folder, *paths) if (why := distrust(path))), None):
                damage = f"not to be trusted: {foreign}"
            elif every_byte:
                verify(paths[0])
            elif (status := _status(paths[0])) is None or status.st_size != manifest.bytes:
                damage = "its engine is missing, or of another size"
        except RecordError as e:
            damage = str(e).splitlines()[0].removeprefix(f"{paths[0]}: ").removeprefix(f"{paths[1]}: ")
        found = [status for path in paths if (status := _status(path)) is not None]
        used = max((status.st_mtime for status in found), default=0.0)
        if manifest is not None and (status := _status(paths[1])) is not None:
            used = status.st_mtime
        return Entry(stem, manifest, damage, sum(status.st_size for status in found), used)

    def remove(self, stem: str) -> bool:
        """Remove one entry and its lock; False when another process is using it just now.

        Raises: RecordError for an entry that cannot be removed.
        """
        try:
            with self.lock(stem, timeout_s=0):
                # The manifest first: an engine without one is never used.
                for path in (*reversed(engine_paths(self.folder, stem)), self._lock_path(stem)):
                    path.unlink(missing_ok=True)
        except TimeoutError:
            return False
        except OSError as e:
            raise RecordError(f"{self.folder}: {stem} cannot be removed: {e.strerror or e}") from e
        return True

    def sweep(self) -> None:
        """Remove half-written files that a killed process left behind, once they are over an hour old."""
        limit = time.time() - _ABANDONED_S
        for name in self._names():
            path = self.folder / name
            if name.startswith(".") and name.endswith(".partial") and (status := _status(path)) is not None:
                with suppress(OSError):
                    if status.st_mtime < limit:
                        path.unlink()

    def _make(self) -> None:
        with suppress(OSError):  # whoever writes into it learns why it is not there
            make_private(self.folder)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise RecordError(f"{self.folder}: not a readable folder: {e.strerror or e}") from e

    def _lock_path(self, stem: str) -> Path:
        return self.folder / f".{stem}.lock"


@dataclass
class Slot:
    """One engine's place in the cache during a build. Whatever goes wrong with it becomes a note, not an error.

    Args:
        cache: None: nothing is found and nothing is kept.
        make_key: Makes the key; a Gr00tError from it means that the engine cannot be cached.
        progress: Told when another process has to be waited for.

    Attributes:
        key: None where there is no cache or no key.
        notes: Plain sentences for the user.
    """

    cache: EngineCache | None
    make_key: Callable[[], Key]
    progress: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    key: Key | None = None

    def __post_init__(self) -> None:
        if self.cache is not None:
            try:
                self.key = self.make_key()
            except Gr00tError as e:
                self._note(f"The engine cache was not used: {_first_line(e)}.")

    def _note(self, text: str) -> None:
        if self.cache is not None and text not in self.cache.said:
            self.cache.said.add(text)
            self.notes.append(text)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Nobody else builds this engine during the block, as far as the system can see to it."""
        if self.cache is None or self.key is None:
            yield
            return
        waiting = partial(self.progress, "waiting for another process that builds the same engine")
        with ExitStack() as stack:
            try:
                stack.enter_context(self.cache.lock(stem_of(self.key), timeout_s=LOCK_TIMEOUT_S, waiting=waiting))
            except TimeoutError:
                self._note(
                    f"Another process has been building the same engine for {LOCK_TIMEOUT_S / 60:.0f} minutes: "
                    "it was not waited for any longer."
                )
            yield

    def find(self, *, read: bool = False) -> Cached | None:
        """The engine, verified; None where it is missing or refused."""
        if self.cache is None or self.key is None:
            return None
        try:
            return self.cache.get(self.key, read=read)
        except Gr00tError as e:
            self._note(f"The engine in the cache was not trusted, and built again: {_first_line(e)}.")
            return None

    def keep(self, plan: bytes | memoryview, description: Description) -> EngineFile | None:
        """Put a finished engine into the cache; None where that was impossible."""
        if self.cache is None or self.key is None:
            return None
        try:
            return self.cache.put(self.key, plan, description)
        except Gr00tError as e:
            self._note(f"The engine is not in the cache: {_first_line(e)}.")
            return None


def _refuse_foreign(path: Path) -> None:
    """Raises: RecordError for a file or folder that somebody else may have written."""
    why = distrust(path)
    if why is not None:
        known = "a folder and files of this user that others cannot write to"
        raise RecordError(f"{path}: {why}", known=known, fix=f"remove it, or make it yours: chmod go-w {path}")


def _first_line(error: Gr00tError) -> str:
    return str(error).splitlines()[0]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
