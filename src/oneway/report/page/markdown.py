"""The sections of a page as Markdown, for a repository: words, tables and facts."""

from collections.abc import Mapping, Sequence

from oneway.report.page.blocks import Block, Bullets, Facts, Grid, Prose, Section


def render_markdown(
    sections: Sequence[Section], *, level: int = 2, images: Mapping[str, str] | None = None
) -> str:
    """Return sections as Markdown.

    Charts, pictures and empty sections are left out.

    Args:
        sections: Sections of a page.
        level: Level of the headings.
        images: Images in Markdown, by anchor of the section that each begins.
    """
    parts = []
    for section in sections:
        blocks = [text for block in section.blocks if (text := _block(block))]
        if section.anchor in (images or {}):
            blocks.insert(0, f"{(images or {})[section.anchor]}\n")
        if blocks:
            parts += [f"{'#' * level} {section.title}\n", *blocks]
    return "\n".join(parts)


def _block(block: Block) -> str:
    """Return a block as Markdown; empty for a block that only a page can show."""
    match block:
        case Prose(lines):
            return "\n".join(f"{line}\n" for line in lines)
        case Bullets(lines):
            return _bullets(lines)
        case Facts(pairs):
            return _bullets([f"{name}: {text}" for name, text in pairs])
        case Grid(listing):
            notes = block.notes()
            return listing.markdown() + (f"\n{_bullets(notes)}" if notes else "")
        case _:
            return ""


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
