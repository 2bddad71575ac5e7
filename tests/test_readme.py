"""The README's example runs as printed, its links lead somewhere, and its figures are records'."""

import re
from pathlib import Path

import torch

from laws import looped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_and_release_the_same_labels():
    torch.manual_seed(0)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102  our own README
    released, clean = names["confidences"], names["target"](names["own_images"])
    assert released.shape == (256, 10)
    assert torch.equal(released.argmax(-1), clean.argmax(-1))
    assert (released - clean).abs().max() > 1e-3


@looped("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_relative_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_no_placeholder_is_left():
    assert "@@" not in README
