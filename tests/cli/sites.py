"""Folders of installed packages that are not there: metadata as pip writes it, and modules."""

from pathlib import Path

from oneway.cli.diagnosis import find_installed


class Site:
    """One such folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def install(self, name, version="1.0", *, requires=(), extras=(), modules=None, python=None):
        """Install a package whose modules are ``{"name": "code"}``; None: one that is empty."""
        lines = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        lines += [f"Provides-Extra: {one}" for one in extras]
        lines += [f"Requires-Python: {python}"] if python else []
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("\n".join(lines) + "\n\nText.\n")
        record = [f"{info.name}/METADATA,,"]
        named = {name.replace("-", "_"): ""} if modules is None else modules
        for module, code in named.items():
            (self.folder / module).mkdir()
            (self.folder / module / "__init__.py").write_text(code)
            record.append(f"{module}/__init__.py,sha256=abc,{len(code)}")
        (info / "RECORD").write_text("\n".join(record) + "\n")
        return self

    @property
    def installed(self):
        return find_installed([str(self.folder)])
