"""`oneway report`: draw the page of an audit, of experiments or of a certificate again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import CACHE, Cache, NoImages, check_suffix, command, galleries_in
from oneway.cli.paths import Reads, Writes
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, OnewayError

if TYPE_CHECKING:
    from oneway.report.page.blocks import Page


@command
def report(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="An audit's folder or its audit.json; records, .jsonl, or folders of them; or a "
            "certificate: a codebook, .safetensors, or the .json of `oneway certify`."
        ),
        Reads("*.json*"),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write, .html. [beside the source]"), Writes()
    ] = None,
    no_images: NoImages = False,
    cache: Cache = CACHE,
) -> None:
    """Write a page for people who decide, from stored files; nothing is run.

    The page is one file of HTML, which needs no network and no script: the verdict first, then
    pictures, charts, tables, flags with their meaning, and how it was measured. Commands that
    audit, run experiments or certify also write it. Pages of experiments show the images that
    CACHE still holds.

    For example:

        oneway report runs/audit

        oneway report results/leaderboard-faces-seed*.jsonl --out faces.html

        oneway report work/guard.safetensors
    """
    from oneway.report.page.render import write_page

    for path in source:
        if not path.exists():
            raise MissingDataError(f"there is no file or folder {path}. Check the path.")
        if path.is_file():
            check_suffix(path, "SOURCE", ".json", ".jsonl", ".safetensors")
    if out is not None:
        check_suffix(out, "--out", ".html")
    first = source[0]
    if (first / "audit.json").is_file():
        first = first / "audit.json"
    alone = first.suffix.lower() in (".json", ".safetensors")
    if alone and len(source) > 1:
        raise InvalidOptionError(
            f"one audit or certificate makes a page, but got {len(source)} files. Run the command "
            "once for each."
        )
    if first.suffix.lower() == ".safetensors":
        page = _of_guard(first)
    elif alone:
        page = _of_json(first, no_images=no_images)
    else:
        page = _of_records(source, cache, no_images=no_images)
    written = out or _beside(first)
    write_page(written, page)
    typer.echo(f"wrote {written}")


def _beside(path: Path) -> Path:
    """Return where the page of a file or folder goes by default."""
    if path.is_dir():
        return path / "report.html"
    return path.with_name("report.html") if path.name == "audit.json" else path.with_suffix(".html")


def _of_guard(path: Path) -> "Page":
    from oneway.defenses.codebook import CodebookRelease
    from oneway.report.page.certificate import certificate_page

    certificate = CodebookRelease.load(path).certificate
    if certificate is None:
        raise MissingDataError(
            f"{path} holds no certificate. Put one into it with `oneway certify --write`."
        )
    return certificate_page(certificate, path.name)


def _of_json(path: Path, *, no_images: bool) -> "Page":
    """Return the page of an audit or of a certificate, whichever the file holds."""
    from oneway.auditing import AuditRecord
    from oneway.report.page.audit import audit_page

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not JSON ({type(error).__name__}).") from error
    if not isinstance(record, dict):
        raise CorruptDataError(f"{path} must hold a JSON object, but holds something else.")
    if "bits_measured" in record:
        return _of_certificate(record, path)
    if "inversion" not in record:
        raise CorruptDataError(
            f"{path} is neither the record of an audit nor a certificate. Pass the audit.json of "
            "`oneway audit`, or what `oneway certify --json` prints."
        )
    audited = AuditRecord.from_json(record, str(path))
    if not audited.threats:
        raise CorruptDataError(f"{path} must hold the results of a threat, but holds none.")
    pictures = path.with_name("pictures.npz")
    inversion = audited.inversion
    if no_images or inversion is None or path.name != "audit.json" or not pictures.is_file():
        return audit_page(audited)
    return audit_page(audited, _pictures(pictures, inversion.examples))


def _of_certificate(record: Mapping[str, Any], path: Path) -> "Page":
    from oneway.defenses.codebook import Certificate
    from oneway.report.page.certificate import certificate_page

    try:
        return certificate_page(Certificate.from_json(record), path.name)
    except OnewayError as error:
        raise CorruptDataError(
            f"{path} is no certificate: {error} Make it again with `oneway certify`."
        ) from error


def _pictures(path: Path, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures of an audit; refuse those of another audit."""
    from oneway.data import read_npz

    pictures = read_npz(path)
    count = len(examples["shown"]) + len(examples["worst"])
    names = {"truth", *examples["attackers"]}
    if pictures.keys() != names or any(len(images) != count for images in pictures.values()):
        raise CorruptDataError(
            f"{path} must hold {count} images by {', '.join(sorted(names))}, as the record beside "
            "it says, but does not. Run the audit again, or pass --no-images."
        )
    return pictures


def _of_records(source: Sequence[Path], cache: Path, *, no_images: bool) -> "Page":
    from oneway.benchmark import published_of
    from oneway.evaluation import read_records
    from oneway.report.page.experiments import records_page

    records = [
        record for path in source for file in _records_in(path) for record in read_records(file)
    ]
    if not records:
        raise MissingDataError(f"{source[0]} holds no records. Pass a file with records.")
    gallery = galleries_in(cache, no_images=no_images)
    return records_page(records, published_of(records), gallery)


def _records_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*-seed*.jsonl")) or sorted(path.glob("records.jsonl"))
    if not files:
        raise MissingDataError(
            f"{path} holds neither an audit.json nor records named EXPERIMENT-PRESET-seedN.jsonl."
        )
    return files
