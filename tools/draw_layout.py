"""A sketch of the demo app's screen: ``python -m tools.draw_layout`` writes build/android/screen.png, in light and dark.

It is a sketch of the layout, not a screenshot: no Android runs here. Sizes, order, texts and colours come from the app (its
layout and values, and its Kotlin code for what the views say and where the chart's bars lie); how views look and how wide
letters are is imitated with Pillow.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

from tools import kotlin
from tools.apk import ANDROID, APP
from tools.build_runner import ENGINE, WORK

UNIT = 2  # pixels of a dp
WIDTH, HEIGHT = 411, 860  # dp of a common phone
LAYOUT = APP / "src" / "main" / "res" / "layout" / "main.xml"
FONTS = Path("/usr/share/fonts/truetype/dejavu")
TEXT_SIZES = {"Large": 22, "Medium": 18, "Small": 14}
THEMES = {
    "values": {"background": "#FAFAFA", "primary": "#212121", "secondary": "#757575", "button": "#D6D7D7"},
    "values-night": {"background": "#303030", "primary": "#FFFFFF", "secondary": "#BDBDBD", "button": "#5A5A5A"},
}


@dataclass
class View:
    """An element of the layout; x, y, width and height in dp once it is laid out."""

    kind: str
    attributes: dict[str, str]
    children: list[View]
    text: str = ""
    box: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])

    @property
    def id(self) -> str:
        """Its name in the layout, or empty."""
        return self.attributes.get("id", "").removeprefix("@+id/")

    @property
    def horizontal(self) -> bool:
        """Whether its children lie side by side."""
        return self.kind == "LinearLayout" and self.attributes.get("orientation") == "horizontal"

    def dp(self, *names: str) -> float:
        """The first of the attributes that is there, or 0."""
        return next((float(self.attributes[n].rstrip("dsp")) for n in names if n in self.attributes), 0.0)

    def edges(self, what: str) -> list[float]:
        """Left, top, right and bottom of "padding" or "layout_margin"."""
        sides = (("Start", "Horizontal"), ("Top", "Vertical"), ("End", "Horizontal"), ("Bottom", "Vertical"))
        return [self.dp(*(f"{what}{side}" for side in names), what) for names in sides]

    @property
    def font(self) -> Any:
        """The font of its text; sizes are Material's."""
        appearance = self.attributes.get("textAppearance", "")
        named = next((size for name, size in TEXT_SIZES.items() if appearance.endswith(name)), 14)
        size = self.dp("textSize") or (18 if self.kind == "EditText" else 16 if self.kind == "Spinner" else named)
        bold = self.kind == "Button" or self.attributes.get("textStyle") == "bold"
        mono = self.attributes.get("fontFamily") == "monospace"
        name = "DejaVuSansMono" if mono else "DejaVuSans-Bold" if bold else "DejaVuSans"
        return ImageFont.truetype(FONTS / f"{name}.ttf", size * UNIT * 0.9)  # DejaVu is wider than Android's Roboto


def main() -> None:
    """Draws both themes side by side and prints where."""
    if not FONTS.is_dir():
        raise SystemExit(f"{FONTS} is not there; as root: apt-get install fonts-dejavu-core")
    said = example()
    screens = [draw(theme, said, arranged(said)) for theme in THEMES]
    picture = Image.new("RGB", (sum(s.width for s in screens) + 3 * 24, max(s.height for s in screens) + 48), "#9E9E9E")
    left = 24
    for screen in screens:
        picture.paste(screen, (left, 24))
        left += screen.width + 24
    target = WORK / "screen.png"
    picture.save(target)
    print(target)


def arranged(said: dict[str, Any]) -> View:
    """The layout with every view in its place, as high as all of its content needs."""
    root = load(ElementTree.parse(LAYOUT).getroot(), resources(), said)
    measure(root, [WIDTH, None], said)
    measure(root, [WIDTH, max(root.box[3], HEIGHT)], said)
    lay_out(root, 0, 0)
    return root


def draw(theme: str, said: dict[str, Any], root: View) -> Image.Image:
    """The screen in one of THEMES."""
    colors = THEMES[theme] | values(theme, "color")
    image = Image.new("RGB", (WIDTH * UNIT, int(root.box[3] * UNIT)), colors["background"])
    for view in walk(root):
        paint(ImageDraw.Draw(image), view, colors, said)
    return image


def app_tests() -> Path:
    """A jar of the app without its screen, its tests and Sketch.kt among them."""
    package = Path("kotlin/dev/edgekit/demo")
    # The activity and its view only copy what these say.
    sources = [APP / "src/main" / package / f"{name}.kt" for name in ("DemoEngine", "DemoModel", "Screen", "Chart")]
    sources += [*sorted((APP / "src/test" / package).glob("*.kt")), ENGINE / "dev/edgekit/Json.kt"]
    jar = WORK / "app-tests.jar"
    kotlin.compile_jar(sources, jar, [kotlin.coroutines(), *kotlin.JUNIT])
    return jar


def example() -> dict[str, Any]:
    """What the app's own code says in an example state (Sketch.kt)."""
    jars = ":".join(map(str, (app_tests(), kotlin.stdlib(), kotlin.coroutines())))
    command = ["java", *kotlin.BRIEF, "-cp", jars, "dev.edgekit.demo.SketchKt", str((WIDTH - 32) * UNIT), str(UNIT)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def values(directory: str, kind: str) -> dict[str, str]:
    """name -> text of the resources of a kind in res/values or another directory."""
    found: dict[str, str] = {}
    for path in sorted((LAYOUT.parent.parent / directory).glob("*.xml")):
        found |= {str(item.get("name")): item.text or "" for item in ElementTree.parse(path).iter(kind)}
    return found


def resources() -> dict[str, Any]:
    """Texts by "@string/NAME", and attributes by "@style/NAME"."""
    styles: dict[str, Any] = {}
    for style in ElementTree.parse(LAYOUT.parent.parent / "values" / "styles.xml").iter("style"):
        items = {str(item.get("name")).removeprefix("android:"): item.text or "" for item in style}
        styles[f"@style/{style.get('name')}"] = items
    return styles | {f"@string/{name}": text for name, text in values("values", "string").items()}


def load(element: ElementTree.Element, known: dict[str, Any], said: dict[str, Any]) -> View:
    """The element and what is below it, without what is not shown."""
    own = {key.removeprefix(f"{{{ANDROID}}}"): value for key, value in element.attrib.items()}
    view = View(element.tag.rsplit(".", 1)[-1], known.get(own.pop("style", ""), {}) | own, [])
    text = view.attributes.get("text") or view.attributes.get("hint", "")
    view.text = said["texts"].get(view.id) or str(known.get(text, text))
    if view.kind == "Button":
        view.text = view.text.upper()
    view.children = [child for child in (load(e, known, said) for e in element) if shown(child, said)]
    return view


def shown(view: View, said: dict[str, Any]) -> bool:
    """As MainActivity decides: texts without content and the line of work without work take no room."""
    return bool(said["texts"][view.id]) if view.id in said["texts"] else view.id != "work" or bool(said["working"])


def measure(view: View, room: list[float | None], said: dict[str, Any]) -> None:
    """Sets the view's width and height, margins not included; ``room`` is what there is, None for as much as it likes."""
    padding, inner = view.edges("padding"), []
    for axis in (0, 1):
        fixed = size(view, axis)
        have = fixed if isinstance(fixed, float) and fixed > 0 else room[axis]
        inner.append(None if have is None else have - padding[axis] - padding[axis + 2])
    need = children(view, inner, said) if view.children else content(view, inner[0] or 0.0, said)
    for axis in (0, 1):
        fixed, have = size(view, axis), inner[axis]
        wanted = have if have is not None and (fixed == "match_parent" or isinstance(fixed, float)) else need[axis]
        view.box[axis + 2] = wanted + padding[axis] + padding[axis + 2]


def size(view: View, axis: int) -> float | str:
    """A number of dp, or how it follows parent or content."""
    text = view.attributes[("layout_width", "layout_height")[axis]]
    return float(text.removesuffix("dp")) if text.endswith("dp") else text


def children(view: View, inner: list[float | None], said: dict[str, Any]) -> list[float]:
    """Measures the children, those with a weight last, and gives the room that all take."""
    along = 0 if view.horizontal else 1
    rest, need = inner[along], [0.0, 0.0]
    for child in sorted(view.children, key=lambda child: child.dp("layout_weight") > 0):
        margin = child.edges("layout_margin")
        room = [None if side is None else side - margin[i] - margin[i + 2] for i, side in enumerate(inner)]
        room[along] = None if rest is None else rest - margin[along] - margin[along + 2]
        measure(child, room, said)
        if child.dp("layout_weight") > 0 and room[along] is not None:
            child.box[along + 2] = float(room[along] or 0)  # one child in a row has a weight here, and gets all
        taken = [child.box[i + 2] + margin[i] + margin[i + 2] for i in (0, 1)]
        rest = None if rest is None else rest - taken[along]
        need[along] += taken[along]
        need[1 - along] = max(need[1 - along], taken[1 - along])
    return need


def content(view: View, width: float, said: dict[str, Any]) -> list[float]:
    """The room that a view without children needs, in dp."""
    if view.kind == "ChartView":
        return [width, said["chart"]["height"] / UNIT]
    if view.kind == "ProgressBar":
        return [width, 16]
    if view.kind == "Button":
        return [max(88.0, view.font.getlength(view.text) / UNIT + 32), 48]
    lines = wrapped(view, width)
    height = len(lines) * line_height(view) / UNIT
    return [max(view.font.getlength(line) / UNIT for line in lines), height + (20 if view.kind == "EditText" else 0)]


def wrapped(view: View, width: float) -> list[str]:
    """The text's lines, cut between words."""
    lines: list[str] = []
    for paragraph in view.text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line.strip() and view.font.getlength(longer) > width * UNIT:
                lines.append(line)
                longer = word
            line = longer if longer else " "
        lines.append(line)
    return lines


def line_height(view: View) -> float:
    """Pixels from one line to the next."""
    return float(view.font.size) / 0.9 * 1.17


def lay_out(view: View, x: float, y: float) -> None:
    """Gives the view and its children their places."""
    view.box[0], view.box[1] = x, y
    padding = view.edges("padding")
    x, y = x + padding[0], y + padding[1]
    for child in view.children:
        margin = child.edges("layout_margin")
        down = 0.0
        if view.horizontal and "center_vertical" in view.attributes.get("gravity", ""):
            down = (view.box[3] - padding[1] - padding[3] - child.box[3]) / 2
        lay_out(child, x + margin[0], y + margin[1] + down)
        if view.horizontal:
            x += child.box[2] + margin[0] + margin[2]
        else:
            y += child.box[3] + margin[1] + margin[3]


def walk(view: View) -> Iterator[View]:
    """The view and all below it."""
    yield view
    for child in view.children:
        yield from walk(child)


def paint(pen: ImageDraw.ImageDraw, view: View, colors: dict[str, str], said: dict[str, Any]) -> None:
    """Draws the view itself."""
    left, top = view.box[0] * UNIT, view.box[1] * UNIT
    right, bottom = left + view.box[2] * UNIT, top + view.box[3] * UNIT
    enabled = said["enabled"].get(view.id, True)
    color = colors["primary" if enabled else "secondary"]
    if view.kind == "Button":
        pen.rounded_rectangle((left + 8, top + 12, right - 8, bottom - 12), 4, fill=colors["button"])
        pen.text(((left + right) / 2, (top + bottom) / 2), view.text, color, view.font, anchor="mm")
    elif view.kind == "Spinner":
        pen.text((left + 16, (top + bottom) / 2), view.text, color, view.font, anchor="lm")
        middle = (top + bottom) / 2
        pen.polygon([(right - 40, middle - 5), (right - 20, middle - 5), (right - 30, middle + 5)], colors["secondary"])
    elif view.kind == "EditText":
        pen.text((left + 8, (top + bottom) / 2), view.text, colors["secondary"], view.font, anchor="lm")
        pen.line((left + 8, bottom - 14, right - 8, bottom - 14), colors["secondary"], 2)
    elif view.kind == "ProgressBar":
        middle = (top + bottom) / 2
        pen.rectangle((left, middle - 3, right, middle + 3), colors["button"])
        pen.rectangle(
            (left + (right - left) * 0.2, middle - 3, left + (right - left) * 0.6, middle + 3), colors["median"]
        )
    elif view.kind == "ChartView":
        paint_chart(pen, left, top, said["chart"], colors)
    elif view.kind == "TextView":
        named = view.attributes.get("textColor", "")
        color = colors["secondary"] if named.endswith("Secondary") else colors.get(named.removeprefix("@color/"), color)
        for index, line in enumerate(wrapped(view, view.box[2])):
            pen.text((left, top + index * line_height(view)), line, color, view.font)


def paint_chart(
    pen: ImageDraw.ImageDraw, left: float, top: float, chart: dict[str, Any], colors: dict[str, str]
) -> None:
    """The chart as Chart.kt placed everything."""
    font = ImageFont.truetype(FONTS / "DejaVuSans.ttf", 12 * UNIT * 0.9)
    for x in chart["grid"]:
        pen.line((left + x, top, left + x, top + chart["bottom"]), colors["button"], UNIT)
    for x0, y0, x1, y1, median in chart["bars"]:
        pen.rectangle((left + x0, top + y0, left + x1, top + y1), colors["median" if median else "ninety"])
    for text, x, y, centered in chart["labels"]:
        pen.text((left + x, top + y), text, colors["primary"], font, anchor="ms" if centered else "ls")


if __name__ == "__main__":
    main()
