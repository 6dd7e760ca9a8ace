"""Dockerfiles carried out without a container tool: each stage is a copy of a Debian root, each RUN a chroot into it.

What cannot be had so is what the real base images bring; `prepare` of `build` puts a stand-in for it in place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

USERS = {"root": 0}


@dataclass
class Image:
    """A root folder, and the settings that its instructions left."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"})
    workdir: str = "/"
    user: int = 0
    healthcheck: str = ""
    entrypoint: str = ""
    command: str = ""

    def run(self, script: str, *, timeout: float = 900, **env: str) -> str:
        """What a shell script prints when it runs in the image. Raises: AssertionError when it fails."""
        done = subprocess.run(
            self.argv(script), env={**self.env, **env}, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def argv(self, script: str) -> list[str]:
        """The command that runs a shell script in the image; the mount of /proc goes with its process."""
        root = str(self.root)
        inside = ["chroot", f"--userspec={self.user}:{self.user}", root, "/bin/sh", "-ec"]
        mounted = f'mount -t proc proc {root}/proc; exec {" ".join(inside)} "$0"'
        return ["unshare", "--mount", "sh", "-ec", mounted, f"cd {self.workdir}\n{script}"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of a Dockerfile, continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def build(
    dockerfile: Path, context: Path, base: Path, at: Path, *, args: Mapping[str, str] | None = None, prepare: str = ""
) -> Image:
    """Carry out a Dockerfile.

    Args:
        context: The folder whose files COPY takes.
        base: A Debian root, which stands for every base image; it is copied.
        at: Folder for the stages' roots.
        args: Values of ARG instructions, over their defaults.
        prepare: Shell script that puts into the base what the real base image would bring.
    """
    given, stages, image = {**_outside(), **(args or {})}, {}, None
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            at.mkdir(parents=True, exist_ok=True)
            image = Image(at / f"stage{len(stages)}")
            subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(image.root)], check=True)
            image.env |= _outside()
            stages[rest.partition(" AS ")[2] or str(len(stages))] = image
            if prepare:
                image.run(prepare)
        elif name == "ARG":
            key, _, default = rest.partition("=")
            given.setdefault(key, default)
        else:
            assert image is not None, f"{name} before FROM"
            _carry_out(image, name, rest, {key: value for key, value in given.items() if value}, stages, context)
    assert image is not None
    return image


def _carry_out(
    image: Image, name: str, rest: str, given: Mapping[str, str], stages: Mapping[str, Image], context: Path
) -> None:
    if name == "RUN":
        image.run(rest, **given)
    elif name == "ENV":
        for key, value in re.findall(r"(\w+)=(\S+)", rest):
            image.env[key] = re.sub(r"\$(\w+)", lambda match: image.env.get(match[1], ""), value)
    elif name == "WORKDIR":
        image.workdir = rest
        (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "COPY":
        _copy(image, rest.split(), stages, context)
    elif name == "USER":
        image.user = USERS.get(rest) or int(rest)
    else:
        settings = {"HEALTHCHECK": "healthcheck", "ENTRYPOINT": "entrypoint", "CMD": "command"}
        assert name in (*settings, "VOLUME", "EXPOSE"), f"{name}: not known here"
        if name in settings:
            setattr(image, settings[name], rest)


def _copy(image: Image, words: Sequence[str], stages: Mapping[str, Image], context: Path) -> None:
    source = context
    if words[0].startswith("--from="):
        source, words = stages[words[0].removeprefix("--from=")].root, words[1:]
    *names, to = words
    target = image.root / (to if to.startswith("/") else f"{image.workdir}/{to}").lstrip("/")
    for name in names:
        found = source / name.lstrip("/")
        into = target / found.name if to.endswith("/") else target
        into.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(found, into)


def _outside() -> dict[str, str]:
    """How pip reaches its index on this machine: the environment of a build, and no part of an image."""
    return {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.lower().endswith("_proxy")}


def debian_root(at: Path) -> Path:
    """A minimal Debian of this machine's release, with what pip needs to reach its index as this machine does."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    assert release, "no Debian"
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", release[1], str(at)]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"):
        shutil.copy2(name, at / name.lstrip("/"))
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    if wheels and Path(wheels).is_dir():
        shutil.copytree(wheels, at / wheels.lstrip("/"))
    return at
