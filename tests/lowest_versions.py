"""Prints pip's constraints for the oldest versions that pyproject.toml allows: `numpy>=2.2` becomes `numpy==2.2.*`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={version if '.' in version else version + '.0'}.*")
