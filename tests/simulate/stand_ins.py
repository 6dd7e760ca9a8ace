"""Stand-ins for the meshes and textures that RoboCasa downloads: boxes and flat colours, for its own code to run on.

Keys, shapes, controllers, task logic and seeds are RoboCasa's own then; looks are not, and no success rate means
anything. For tests only.
"""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np

FOLDERS = {"objaverse": "objaverse", "aigen": "aigen_objs", "sketchfab": "sketchfab", "lightwheel": "lightwheel"}
"""Registry of objects -> its folder."""
OPEN = re.compile("bowl|plate|pan|pot|basket|box|tray|shelf|board|placemat|container")
"""What other things are put into or onto."""
TIERED = re.compile("shelf|tiered")
UNFELT = {"group": "1", "contype": "0", "conaffinity": "0"}
SMALL, LARGE, WALL = (0.03, 0.03, 0.04), (0.11, 0.11, 0.04), 0.006
"""Half sizes in metres: what a hand holds, and what holds it."""
EACH = 2
"""Objects of a category."""
TEXTURE = re.compile(r"[\w./]*textures/[\w./-]+\.(?:png|jpg)")


def write(package: Path) -> int:
    """Write stand-ins into RoboCasa's package folder, beside what is there. Returns: how many files."""
    assets = package / "models" / "assets"
    for folder in FOLDERS.values():
        (assets / "objects" / folder).mkdir(parents=True, exist_ok=True)
    contents = dict(_objects(package, assets)) | dict(_meshes(assets)) | dict(_textures(package, assets))
    missing = {path: content for path, content in contents.items() if not path.exists()}
    for path, content in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(missing)


def _objects(package: Path, assets: Path) -> Iterator[tuple[Path, bytes]]:
    for name, kinds in _categories(package).items():
        for registry, folder in FOLDERS.items():
            if registry not in kinds:
                continue
            own = kinds[registry] or {}
            size = SMALL if own.get("graspable", kinds.get("graspable")) else LARGE
            half = np.array(size) / np.max(own.get("scale", 1.0))
            for place in own.get("model_folders") or [f"{folder}/{name}"]:
                for number in range(EACH):
                    yield assets / "objects" / place / f"stand_in_{number}" / "model.xml", _object(name, half)


def _categories(package: Path) -> dict[str, Any]:
    """RoboCasa's table of objects, which its own module turns into objects that look for files."""
    tree = ast.parse((package / "models" / "objects" / "kitchen_objects.py").read_text())
    named = [
        node for node in tree.body if isinstance(node, ast.Assign) and "OBJ_CATEGORIES" in ast.unparse(node.targets)
    ]
    found: dict[str, Any] = {}
    exec(compile(ast.Module(named[:1], []), "kitchen_objects.py", "exec"), found)
    return found["OBJ_CATEGORIES"]


def _object(name: str, half: np.ndarray) -> bytes:
    """A box, or a tray of a floor and four walls, with the sites that RoboCasa measures objects by."""
    root = ET.Element("mujoco", model=name)
    ET.SubElement(root, "asset")
    outer = ET.SubElement(ET.SubElement(root, "worldbody"), "body")
    body = ET.SubElement(outer, "body", name="object")
    colour = " ".join(f"{part / 255:.2f}" for part in (*_colour(name), 255))
    for number, (place, size) in enumerate(_boxes(half) if OPEN.search(name) else [(np.zeros(3), half)]):
        box = {"type": "box", "pos": _numbers(place), "size": _numbers(size)}
        ET.SubElement(body, "geom", name=f"seen{number}", **box, rgba=colour, **UNFELT)
        ET.SubElement(body, "geom", name=f"felt{number}", **box, group="0", rgba="0 1 0 0")
    if TIERED.search(name):  # where its tasks look for what was put there
        place, size = _numbers((0, 0, half[2])), _numbers((0.8 * half[0], 0.8 * half[1], WALL))
        ET.SubElement(body, "geom", name="spawn_0", type="box", pos=place, size=size, rgba="0 0 0 0", **UNFELT)
    sites = {"bottom": (0, 0, -half[2]), "top": (0, 0, half[2]), "horizontal_radius": (half[0], half[1], 0)}
    for site, place in sites.items():
        ET.SubElement(outer, "site", name=f"{site}_site", pos=_numbers(place), size="0.005", rgba="0 0 0 0")
    return ET.tostring(root)


def _boxes(half: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield np.array([0, 0, WALL - half[2]]), np.array([half[0], half[1], WALL])
    for axis, side in product((0, 1), (-1, 1)):
        place, size = np.zeros(3), half.copy()
        place[axis], size[axis] = side * (half[axis] - WALL), WALL
        yield place, size


def _meshes(assets: Path) -> Iterator[tuple[Path, bytes]]:
    """What the models that ship name and do not bring."""
    for path in assets.rglob("*.xml"):
        root = ET.parse(path).getroot()
        compiler = root.find("compiler")
        folders = {} if compiler is None else compiler.attrib
        for kind in ("mesh", "texture"):
            for element in root.iter(kind):
                if element.get("file"):
                    file = path.parent / folders.get(f"{kind}dir", "") / element.attrib["file"]
                    yield file, _cube() if kind == "mesh" else _picture(file.name)


def _textures(package: Path, assets: Path) -> Iterator[tuple[Path, bytes]]:
    """What layouts and code name."""
    for text in (*assets.rglob("*.yaml"), *package.rglob("*.py")):
        for name in TEXTURE.findall(text.read_text()):
            if not name.startswith("/"):
                yield assets / name, _picture(Path(name).name)


def _cube() -> bytes:
    corners = list(product((-0.04, 0.04), repeat=3))
    faces = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    return "\n".join([*lines, *("f " + " ".join(map(str, face)) for face in faces), ""]).encode()


def _picture(name: str) -> bytes:
    codec = av.CodecContext.create("png", "w")
    codec.width = codec.height = 8
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.full((8, 8, 3), _colour(name), np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def _colour(name: str) -> tuple[int, int, int]:
    seed = zlib.crc32(name.encode())
    return 90 + seed % 150, 90 + (seed >> 8) % 150, 90 + (seed >> 16) % 150


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.5f}" for value in values)
