"""Notebooks as pages: text, code, and the outputs that are stored in them."""

import base64
import json
import pathlib


def page(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook's page and its pictures, by file name."""
    blocks, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                blocks.append(f"![What the cell above draws]({name})")
            elif text:
                blocks.append(f"```text\n{text.rstrip()}\n```")
    blocks.append(f"*Run it: `notebooks/{path.name}`.*")
    return "\n\n".join(blocks) + "\n", pictures
