"""The steps of `kargah setup compute`, in order, for whoever shows them: from an index, or from folders of wheels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kargah.app.setup.environment import Environment, Proof, Surroundings
from kargah.app.setup.errors import (
    ComputeBroken,
    ExternallyManaged,
    IndexRefused,
    Unresolved,
    WheelMismatch,
    WheelsBusy,
    WheelsMissing,
)
from kargah.app.setup.fetching import Arriving, Fetcher, digest_of, refuse_folder
from kargah.app.setup.folder import lacking, this_machine, verify, wheels_in, write_sums
from kargah.app.setup.goal import Goal, Target
from kargah.app.setup.installing import check_space, install
from kargah.app.setup.network import network_of
from kargah.app.setup.pip_program import IndexOptions, Pip, Said, find_pip
from kargah.app.setup.resolving import (
    Question,
    Wheel,
    drop_plan,
    read_plan,
    resolve,
    resolve_from,
    with_sizes,
    write_plan,
)
from kargah.spec.lock import FileLock, LockHeld

LOCK_FILE = "setup.lock"
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))
"""Where an NVIDIA GPU shows on Linux, and any GPU in WSL2."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What comes: `needed_bytes` on disk for it all, `missing_bytes` of wheels are still to come. With `again` what was
    asked for is installed but cannot be imported: so it is installed anew."""

    pip: Pip
    wheels: tuple[Wheel, ...]
    missing_bytes: int
    needed_bytes: int
    again: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of all wheels whose size is known."""
        return sum(wheel.size_bytes or 0 for wheel in self.wheels)

    def needless_cuda(self, devices: Sequence[Path] = GPU_DEVICES) -> bool:
        """Whether CUDA's libraries would come to a machine where no NVIDIA GPU shows: most of the bytes for nothing."""
        comes = any(wheel.name.startswith(("nvidia-", "cuda-")) for wheel in self.wheels)
        return comes and not any(device.exists() for device in devices)


def standing(goal: Goal, environment: Environment, *, must_install: bool) -> Proof | None:
    """The proof when everything is there already, else None. Raises `ExternallyManaged` where nothing may be put."""
    surroundings = environment.look()
    if goal.reached(surroundings):
        try:
            return environment.prove(goal.modules)
        except ComputeBroken:
            # Perhaps something that is required in turn is missing: pip finds out.
            return None
    if must_install and surroundings.externally_managed:
        raise ExternallyManaged(python=environment.python)
    return None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock. Raises `WheelsBusy`; what the disk refuses, until it is released,
    becomes `WheelsUnusable` or `DiskFull`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire()
    except LockHeld as held:
        raise WheelsBusy(path=str(folder), pid=str(held.pid)) from held
    except OSError as error:
        refuse_folder(error, folder)
    try:
        yield
    except OSError as error:
        refuse_folder(error, folder)
    finally:
        lock.release()


class FromIndex:
    """Wheels over the network into one folder. The folder's lock is the caller's (`sole_writer`)."""

    def __init__(
        self,
        goal: Goal,
        environment: Environment,
        folder: Path,
        index: IndexOptions,
        *,
        target: Target | None = None,
        to_keep: bool = False,
    ) -> None:
        """With `to_keep` the folder is for another installation: everything goes there, whatever is installed here."""
        self._goal = goal
        self._environment = environment
        self._folder = folder
        self._index = index
        self._target = target
        self._to_keep = to_keep
        self._digests: dict[str, str] = {}

    def plan(self, said: Said) -> Plan:
        """Find out what to bring, by an earlier plan or by pip. Raises `PipMissing`, `Unresolved` and `DiskFull`."""
        pip = find_pip(self._environment, [self._folder], self._index, said)
        surroundings = self._environment.look()
        question, wheels = self._resolved(pip, surroundings, said)
        self._fetcher = Fetcher(self._folder, network_of(pip, self._index))
        wheels = with_sizes(wheels, self._fetcher.sizes(wheels))
        write_plan(self._folder, pip, question, wheels)
        missing = sum(max(0, (wheel.size_bytes or 0) - self._fetcher.held_bytes(wheel)) for wheel in wheels)
        site = None if self._to_keep else surroundings.site
        needed = check_space(self._folder, missing, site, wheels, self._held(wheels))
        again = not self._to_keep and self._goal.reached(surroundings)
        return Plan(pip, wheels, missing, needed, again)

    def fetch(self, plan: Plan, watch: Callable[[Sequence[Arriving]], None]) -> None:
        """Bring what is missing. Raises `SetupFailed`; what came is kept, and a plan that the index disowns is not."""
        try:
            self._digests = self._fetcher.fetch(plan.wheels, watch)
        except (IndexRefused, WheelMismatch):
            drop_plan(self._folder)
            raise
        self._fetcher.close()
        pip_wheel = {plan.pip.wheel.name: digest_of(plan.pip.wheel)} if plan.pip.wheel is not None else {}
        write_sums(self._folder, {**self._digests, **pip_wheel})
        for part in self._folder.glob("*.part*"):
            # Of a plan that is no more.
            part.unlink()

    def install(self, plan: Plan, said: Said) -> Proof:
        """Install what was fetched and try it. Raises `InstallFailed`, `ComputeBroken` and `DiskFull`."""
        surroundings = self._environment.look()
        check_space(None, 0, surroundings.site, plan.wheels, self._held(plan.wheels))
        install(
            plan.pip, [self._folder], plan.wheels, self._digests, said, halves=surroundings.halves, again=plan.again
        )
        return self._environment.prove(self._goal.modules)

    def _resolved(self, pip: Pip, surroundings: Surroundings, said: Said) -> tuple[Question, tuple[Wheel, ...]]:
        questions = [
            Question(self._goal, self._index, self._target, surroundings, afresh=afresh)
            for afresh in (self._to_keep, True)
        ]
        for question in questions:
            kept = read_plan(self._folder, pip, question)
            # An installation that was broken off belongs to the plan it was for.
            if kept is not None and surroundings.halves <= {wheel.name for wheel in kept}:
                return question, kept
        wheels = () if surroundings.halves else resolve(pip, questions[0], said)
        if wheels:
            return questions[0], wheels
        # Nothing is missing by pip's reckoning, and yet it does not work.
        return questions[1], resolve(pip, questions[1], said)

    def _held(self, wheels: Sequence[Wheel]) -> list[Path]:
        return [self._folder / wheel.file for wheel in wheels if (self._folder / wheel.file).is_file()]


class FromFolders:
    """Wheels that lie in folders already: no network at all."""

    def __init__(self, goal: Goal, environment: Environment, folders: Sequence[Path]) -> None:
        self._goal = goal
        self._environment = environment
        self._folders = tuple(folders)
        self._digests: dict[str, str] = {}

    def verify(self, read: Callable[[int], None]) -> None:
        """Read every wheel once. Raises `WheelsDamaged` and `WheelsUnusable`."""
        self._digests = verify(self._folders, read)

    def total_bytes(self) -> int:
        """Bytes that `verify` reads. Raises `WheelsUnusable`."""
        return sum(path.stat().st_size for path in wheels_in(self._folders))

    def plan(self, said: Said) -> Plan:
        """Find out what to install. Raises `WheelsMissing`, `PipMissing`, `Unresolved` and `DiskFull`."""
        pip = find_pip(self._environment, self._folders, None, said)
        surroundings = self._environment.look()
        try:
            again = self._goal.reached(surroundings)
            wheels = resolve_from(pip, self._goal, self._folders, afresh=again or bool(surroundings.halves))
        except Unresolved:
            missing = lacking(self._goal, self._folders, surroundings, afresh=again)
            if not missing:
                raise
            words = [str(one) for one in missing]
            raise WheelsMissing(missing="; ".join(words), machine=this_machine(), details={"missing": words}) from None
        held = self._held(wheels)
        sized = with_sizes(wheels, {path.name: path.stat().st_size for path in held})
        return Plan(pip, sized, 0, check_space(None, 0, surroundings.site, sized, held), again)

    def install(self, plan: Plan, said: Said) -> Proof:
        """Install what was verified and try it. Raises `InstallFailed` and `ComputeBroken`."""
        halves = self._environment.look().halves
        install(plan.pip, self._folders, plan.wheels, self._digests, said, halves=halves, again=plan.again)
        return self._environment.prove(self._goal.modules)

    def _held(self, wheels: Sequence[Wheel]) -> list[Path]:
        return [wheel.local for wheel in wheels if wheel.local is not None]
