"What `pip install cargan` brings without extras: the distributions, and a folder in which nothing else is."
import re
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT


def settings() -> dict:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def applies(requirement: Requirement, extras) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))


def closure(lines) -> dict:
    "All distributions that requirements ask for, directly or not: name -> distribution. One that is missing, or too old, is an error."
    todo, found, seen = [(Requirement(line), ()) for line in lines], {}, set()
    while todo:
        r, extras = todo.pop()
        if not applies(r, extras) or (key := (canonicalize_name(r.name), frozenset(r.extras))) in seen: continue
        seen.add(key)
        dist = found[key[0]] = metadata.distribution(r.name)
        assert r.specifier.contains(dist.version, prereleases=True), f"{dist.name} {dist.version} is installed, and {r} is asked for"
        todo += [(Requirement(line), tuple(r.extras)) for line in dist.requires or []]
    return found


def tops(dist) -> set:
    "The files and folders at the top of site-packages that a distribution owns; of a folder that several may share, those inside."
    found = set()
    for file in dist.files or []:
        parts = Path(file).parts
        if parts[0] in ("..", "__pycache__") or len(parts) == 1 and parts[0].endswith(".pth"): continue
        first = Path(dist.locate_file(parts[0]))
        shared = len(parts) > 1 and not (first/"__init__.py").exists() and not re.search(r"\.(dist-info|libs|data)$", parts[0])
        found.add(parts[0] + "/" + parts[1] if shared else parts[0])
    return found


def links(dists, folder: Path) -> Path:
    "A folder for `sys.path` with these distributions and no others."
    for dist in dists:
        for top in tops(dist):
            (folder/top).parent.mkdir(parents=True, exist_ok=True)
            if not (folder/top).exists(): (folder/top).symlink_to(dist.locate_file(top))
    return folder


def megabytes(dists) -> float:
    "What distributions take on the disk."
    files = {Path(d.locate_file(f)).resolve() for d in dists for f in d.files or []}
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6
