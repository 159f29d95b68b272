"""Lets the environment that runs this see the packages of another one: python join_environment.py .venv"""

import site
import sys
from pathlib import Path

theirs = next(Path(sys.argv[1]).resolve().glob("lib/python*/site-packages"))
(Path(site.getsitepackages()[0]) / "joined.pth").write_text(f"import site; site.addsitedir({str(theirs)!r})\n")
