"""The demo app without its screen, and the copying of bundles out of the app, tested by JUnit."""

from __future__ import annotations

import pytest

from tests.support.android import junit
from tests.support.tooling import ROOT, require
from tools import android_packages, draw_layout, kotlin
from tools.build_runner import WORK

APP = ROOT / "android_demo" / "app" / "src"
LIBRARY = ROOT / "android_demo" / "edgekit" / "src"


def test_the_app_without_its_screen() -> None:
    junit.needed()
    tests = sorted((APP / "test/kotlin/dev/edgekit/demo").glob("*.kt"))
    assert "OK (26 tests)" in junit.run([draw_layout.app_tests(), kotlin.coroutines()], tests)


def test_copying_bundles_out_of_the_app() -> None:
    junit.needed()
    engine = LIBRARY / "main/kotlin/dev/edgekit"
    sources = [engine / "Json.kt", engine / "EdgeKitException.kt", engine / "android/BundleAssets.kt"]
    tests = sorted((LIBRARY / "test/kotlin/dev/edgekit/android").glob("*.kt"))
    # Android's classes are stubs here: what calls them is replaced by functions in the tests.
    jar, android = WORK / "assets-tests.jar", android_packages.android_jar()
    kotlin.compile_jar([*sources, *tests], jar, [*kotlin.JUNIT, android])
    assert "OK (12 tests)" in junit.run([jar, android], tests)


@pytest.mark.parametrize("theme", draw_layout.THEMES)
def test_the_sketch_of_the_screen(theme: str) -> None:
    junit.needed()
    require(draw_layout.FONTS.is_dir(), "no DejaVu fonts; as root: apt-get install fonts-dejavu-core")
    said = draw_layout.example()
    root = draw_layout.arranged(said)
    views = list(draw_layout.walk(root))
    assert {"bundles", "open", "parity", "run_benchmark", "chart", "chat", "send", "stop"} <= {
        view.id for view in views
    }
    for view in views:
        left, top, width, height = view.box
        assert 0 <= left <= left + width <= draw_layout.WIDTH, view
        assert 0 <= top <= top + height <= root.box[3], view
        if view.kind in ("Button", "EditText", "Spinner"):  # they have one line
            assert view.font.getlength(view.text) / draw_layout.UNIT <= width - 16, view
    picture = draw_layout.draw(theme, said, root)
    assert list(picture.size) == [draw_layout.WIDTH * draw_layout.UNIT, root.box[3] * draw_layout.UNIT]
    assert len(picture.getcolors(1 << 20) or []) > 20
