"""SVG is found, made harmless, drawn within limits, and compared."""

import math
import sys

import numpy as np
import pytest
from PIL import Image

from internvl_jax.errors import InputError
from internvl_jax.evaluation import svg

SPACE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RED = f'<svg {SPACE} viewBox="0 0 20 10"><rect width="20" height="10" fill="red"/></svg>'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Here:\n```svg\n{RED}\n```\ndone", RED),
        (f"```svg\n<svg>1</svg>\n```\nbetter:\n```svg\n{RED}\n```", RED),
        (f"```xml\n{RED}\n```", RED),
        (f"first <svg>1</svg> then {RED} end", RED),
        (f"```python\nprint()\n```\n{RED}", RED),
        ("```svg\n<svg><rect/>", "<svg><rect/>"),
        ("<svg><rect/>", "<svg><rect/>"),
        (f"An <svg> of one in another: <svg a='1'>{RED}<g/></svg>.", f"<svg a='1'>{RED}<g/></svg>"),
        (f"{RED} and <svg/> and <svg a='1'><svg b='2'><g", "<svg a='1'><svg b='2'><g"),
        (f"<svg a='1'>{RED}<svg/></svg><svgs>", f"<svg a='1'>{RED}<svg/></svg>"),
        ("an empty <svg/> and no more", "<svg/>"),
        ("</svg> <svg", "<svg"),
        ("no drawing", None),
        ("", None),
    ],
)
def test_the_last_drawing_is_found(text, found):
    assert svg.find_svg(text) == found


@pytest.mark.parametrize(
    ("inside", "gone"),
    [
        ('<image width="9" height="9" xlink:href="/tmp/a.png"/>', "a.png"),
        ('<image width="9" height="9" href="file:///tmp/a.png"/>', "a.png"),
        ('<image href="https://host/a.png"/>', "host"),
        ('<image href="data:image/svg+xml;base64,AAAA"/>', "svg+xml"),
        ('<use href="other.svg#a"/>', "other.svg"),
        ('<rect fill="url(http://host/a.svg#g)"/>', "host"),
        ('<rect style="fill: url( &quot;http://host/a&quot; )"/>', "host"),
        ("<style>@import 'http://host/a.css';</style>", "host"),
        ("<style>rect { fill: url(http://host/a) }</style>", "host"),
        ("<script>alert(1)</script>", "alert"),
        ('<rect onclick="alert(1)"/>', "alert"),
        ("<foreignObject><p>text</p></foreignObject>", "text"),
    ],
)
def test_what_leads_outside_is_left_out(inside, gone):
    text, left = svg.harmless(f"<svg {SPACE}><g>{inside}</g></svg>")
    assert gone not in text and len(left) == 1


def test_what_stays_within_stays():
    inside = (
        '<defs><linearGradient id="g"/></defs><rect fill="url(#g)" style="stroke: url( \'#g\' )"/>'
        '<use xlink:href="#g"/>'
        '<image href="data:image/png;base64,AAAA"/><style>rect { fill: red }</style><a href="#x"/>'
    )
    text, left = svg.harmless(f"<svg {SPACE}>{inside}</svg>")
    assert left == [] and text.count("#g") == 3 and "base64,AAAA" in text and "fill: red" in text
    public = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    assert svg.harmless(public + RED)[1] == []


def test_a_drawing_is_what_it_says():
    picture = svg.draw_svg(RED, 100)
    assert picture.size == (100, 50) and picture.getcolors() == [(5000, (255, 0, 0))]
    half = svg.draw_svg(f'<svg {SPACE} viewBox="0 0 10 20"><rect width="5" height="20" fill="#0000ff80"/></svg>', 40)
    assert half.size == (20, 40) and half.getpixel((2, 2)) == (127, 127, 255) and half.getpixel((15, 9)) == (255,) * 3


def test_text_is_drawn_in_fonts_that_are_always_there():
    text = '<text x="2" y="15" font-family="{}" font-size="14">hello</text>'
    drawn = [
        np.asarray(svg.draw_svg(f'<svg {SPACE} viewBox="0 0 60 20">{text.format(name)}</svg>', 60).convert("L"))
        for name in ("Arial", "No Such Font")
    ]
    assert (drawn[0] < 128).sum() > 50
    np.testing.assert_array_equal(*drawn)


def test_a_local_file_is_not_read(tmp_path):
    Image.new("RGB", (5, 5), "blue").save(tmp_path / "a.png")
    drawing = f'<svg {SPACE} viewBox="0 0 9 9"><image width="9" height="9" xlink:href="{tmp_path}/a.png"/></svg>'
    assert svg.draw_svg(drawing, 9).getcolors() == [(81, (255, 255, 255))]


USES = "".join(f'<g id="g{k}">' + 10 * f'<use href="#g{k - 1}"/>' + "</g>" for k in range(1, 12))
SLOW = (
    '<filter id="f" x="0" y="0" width="1" height="1"><feTurbulence baseFrequency="0.9" numOctaves="99999"/></filter>'
    '<rect width="9" height="9" filter="url(#f)"/>'
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<svg", "no well-formed XML"),
        ("<svg><rect></svg>", "no well-formed XML"),
        ("<html/>", "begins with <html>; it must be an <svg>"),
        ("<svg>" + " " * (1 << 20), "more than the limit of 1,048,576"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>', "defines entities"),
        ("<svg>" + "<g>" * 300 + "</g>" * 300 + "</svg>", "within more than 200 others"),
        (f'<svg {SPACE} width="0" height="3"/>', "can't be drawn"),
        (f'<svg {SPACE} viewBox="0 0 9 9"><g id="g0"><rect/></g>{USES}<use href="#g11"/></svg>', "can't be drawn"),
        (
            f'<svg {SPACE} viewBox="0 0 9 9">{SLOW}</svg>',
            "took (more|longer) than 1 s",
        ),  # of a busy machine, or by the clock
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(text, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        svg.draw_svg(text, 200, seconds=1)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(svg, "_MEMORY", 1 << 20)
    with pytest.raises(InputError, match="took more than 10 s or 1,048,576 bytes"):
        svg.draw_svg(RED, 4096)


def test_the_side_is_bounded_and_a_missing_library_said(monkeypatch):
    with pytest.raises(InputError, match="from 1 to 4,096"):
        svg.draw_svg(RED, 5000)
    assert svg.draw_svg(f'<svg {SPACE} width="1" height="100000"/>', 64).size == (1, 64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs resvg; pip install 'internvl_jax\[svg\]'"):
        svg.draw_svg(RED)
    assert "resvg_py" not in sys.modules


def noise(seed, shape=(24, 30, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr():
    one = noise(0)
    assert svg.psnr(one, one) == math.inf
    flat = np.full((9, 9, 3), 100, np.uint8)
    assert svg.psnr(flat, flat + 10) == pytest.approx(20 * math.log10(25.5))


def test_ssim():
    """Of flat pictures only the means are compared, by Wang's formula; otherwise 1 for equal, the same both ways."""
    one, other = noise(0), noise(1)
    assert svg.ssim(one, one) == pytest.approx(1) and abs(svg.ssim(one, other)) < 0.1
    assert svg.ssim(one, other) == pytest.approx(svg.ssim(other, one))
    flat = np.full((20, 20, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert svg.ssim(flat, flat + 50) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    # One window: the sums written out.
    x, y = one[:11, :11, :1].astype(float)[..., 0], other[:11, :11, :1].astype(float)[..., 0]
    weight = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(weight, weight) / weight.sum() ** 2
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, cov = ((window * a * b).sum() - c for a, b, c in ((x, x, mx * mx), (y, y, my * my), (x, y, mx * my)))
    c2 = (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert svg.ssim(one[:11, :11, :1], other[:11, :11, :1]) == pytest.approx(expected)


def test_pictures_of_other_sizes_are_not_compared():
    for measure in (svg.psnr, svg.ssim):
        with pytest.raises(InputError, match="can't be compared"):
            measure(noise(0), noise(0)[:20])
        with pytest.raises(InputError, match="can't be compared"):
            measure(noise(0), noise(0).astype(float))
    with pytest.raises(InputError, match="have no SSIM"):
        svg.ssim(noise(0)[:9], noise(1)[:9])
