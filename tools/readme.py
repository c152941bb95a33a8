"""Write README.md from nbs/index.ipynb, so that the first page is a notebook that ran.  Usage: python tools/readme.py"""
import base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIGURES = Path("README_files")


def from_root(text: str) -> str:
    "Links that are right in nbs/, made right in the repository's root."
    text = re.sub(r"(\]\(|src=\")\.\./", r"\1", text)  # ../CONTRIBUTING.md
    return re.sub(r"(\]\(|src=\")(?=[\w/]+\.(?:ipynb|png|jpg|gif)\b)(?!" + str(FIGURES) + ")", r"\1nbs/", text)


def outputs(cell: dict, number: int) -> tuple[list[str], dict[Path, bytes]]:
    "What a code cell showed, as markdown, and its figures by path."
    parts, figures = [], {}
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        if "image/png" in data:
            path = FIGURES / f"figure_{number}.png"
            figures[path] = base64.b64decode("".join(data["image/png"]))
            parts.append(f"![]({path.as_posix()})")
        elif "text/markdown" in data: parts.append(from_root("".join(data["text/markdown"])))
        elif text := "".join(out.get("text", data.get("text/plain", []))): parts.append(f"```\n{text.rstrip()}\n```")
    return parts, figures


def render(notebook: Path) -> tuple[str, dict[Path, bytes]]:
    "The notebook as markdown; cells marked `#| hide` are left out, `#| echo: false` shows only what they print."
    parts, figures = ["<!-- Written from nbs/index.ipynb by tools/readme.py: change the notebook, not this file. -->"], {}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        directives = re.findall(r"^#\| *(.+?) *$", source, flags=re.M)
        if "hide" in directives or any(d.startswith("default_exp") for d in directives): continue
        if cell["cell_type"] == "markdown": parts.append(from_root(source)); continue
        if "echo: false" not in directives:
            parts.append("```python\n" + re.sub(r"^#\|.*\n", "", source, flags=re.M).strip() + "\n```")
        shown, new = outputs(cell, number)
        parts += shown; figures |= new
    return "\n\n".join(p for p in parts if p.strip()) + "\n", figures


def main():
    text, figures = render(ROOT / "nbs/index.ipynb")
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    (ROOT / FIGURES).mkdir(exist_ok=True)
    for old in (ROOT / FIGURES).glob("figure_*.png"):
        if FIGURES / old.name not in figures: old.unlink()
    for path, data in figures.items(): (ROOT / path).write_bytes(data)
    if not figures: (ROOT / FIGURES).rmdir()


if __name__ == "__main__": sys.exit(main())
