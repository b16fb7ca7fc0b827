"""Pictures on the page: picked, dropped, pasted, by address; what is sent of them, and how they are shown."""

import base64
import io
from typing import Any

import pytest
from actions import ask, attach, picture, png, sent_pictures
from fake_server import Fake
from PIL import Image

ATTACHED = "#attached > li"
MAX_SIDE = 2240


def read(address: str) -> tuple[str, Image.Image]:
    """(MIME type, picture) of a data: URI."""
    head, _, data = address.partition(";base64,")
    return head.removeprefix("data:"), Image.open(io.BytesIO(base64.b64decode(data)))


def two_halves(kind: str, **options: Any) -> bytes:
    """300 x 100, red at the left, blue at the right, as stored."""
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (150, 0, 300, 100))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_several_are_picked_and_sent_in_order(page: Any, fake: Fake):
    one, two = png(40, 30, "red"), picture("JPEG", 50, 60, "blue")
    attach(page, ("one.png", "image/png", one), ("two.jpg", "image/jpeg", two))
    page.locator(ATTACHED).nth(1).locator("img").wait_for()
    ask(page, "What is this?")
    content = fake.bodies[-1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    sent = {
        address.partition(",")[0]: base64.b64decode(address.partition(",")[2])
        for address in sent_pictures(fake.bodies[-1])
    }
    assert sent == {"data:image/png;base64": one, "data:image/jpeg;base64": two}  # small ones byte for byte
    assert page.locator(ATTACHED).count() == 0
    alts = [image.get_attribute("alt") for image in page.locator(".message .thumb img").all()]
    assert sorted(alts) == ["Picture one.png, 40 by 30 pixels", "Picture two.jpg, 50 by 60 pixels"]
    ask(page, "And now?")  # they stay part of the chat
    assert len(sent_pictures(fake.bodies[-1])) == 2


def test_one_is_removed_before_sending(page: Any, fake: Fake):
    attach(page, ("a.png", "image/png", png(colour="red")))
    page.locator(f"{ATTACHED} img").first.wait_for()
    attach(page, ("b.png", "image/png", png(colour="blue")))
    page.locator(f"{ATTACHED} img").nth(1).wait_for()
    page.get_by_label("Remove: Picture a.png").click()
    assert "b.png" in page.evaluate("document.activeElement.ariaLabel")  # the focus goes to the next one
    ask(page, "?")
    (address,) = sent_pictures(fake.bodies[-1])
    assert read(address)[1].convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_a_picture_needs_no_words(page: Any, fake: Fake):
    attach(page, ("a.png", "image/png", png()))
    page.click("#send")  # waits for the picture
    page.locator(".costs:not([hidden])").wait_for()
    assert [part["type"] for part in fake.bodies[-1]["messages"][0]["content"]] == ["image_url"]
    assert page.inner_text("#title") == "A picture"


def test_large_photos_are_made_smaller(page: Any, fake: Fake):
    attach(page, ("big.jpg", "image/jpeg", picture("JPEG", 4480, 1000, "green")))
    ask(page, "?")
    kind, image = read(sent_pictures(fake.bodies[-1])[0])
    assert (kind, image.size) == ("image/jpeg", (MAX_SIDE, 500))
    red, green, blue = image.convert("RGB").getpixel((1000, 250))
    assert (red, blue) <= (5, 5) and 120 <= green <= 136


def test_of_exactly_the_largest_size_is_sent_as_it_is(page: Any, fake: Fake):
    data = picture("JPEG", MAX_SIDE, 20, "green")
    attach(page, ("edge.jpg", "image/jpeg", data))
    ask(page, "?")
    assert base64.b64decode(sent_pictures(fake.bodies[-1])[0].partition(",")[2]) == data


@pytest.mark.parametrize(("orientation", "scale"), [(6, 1), (6, 10), (3, 10)])
def test_photos_stay_upright(page: Any, fake: Fake, orientation: int, scale: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(two_halves("PNG"))).resize((300 * scale, 100 * scale))
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=exif)
    attach(page, ("turned.jpg", "image/jpeg", file.getvalue()))
    ask(page, "?")
    _, image = read(sent_pictures(fake.bodies[-1])[0])
    kept = image.getexif().get(0x0112, 1)
    assert kept == (orientation if scale == 1 else 1)  # as it was, or drawn upright
    if scale > 1:
        width, height = image.size
        assert (width < height) == (orientation == 6)
        first, last = image.convert("RGB").getpixel((5, 5)), image.convert("RGB").getpixel((width - 5, height - 5))
        assert (first[0] > 200, last[2] > 200) == ((True, True) if orientation == 6 else (False, False))


def test_a_large_drawing_keeps_its_exact_colours_and_transparency(page: Any, fake: Fake):
    attach(page, ("drawing.png", "image/png", png(3000, 200, (10, 200, 30, 128), "RGBA")))
    ask(page, "?")
    kind, image = read(sent_pictures(fake.bodies[-1])[0])
    assert (kind, image.size) == ("image/png", (MAX_SIDE, 149))
    assert image.convert("RGBA").getpixel((100, 100))[3] == 128


def test_formats_that_the_server_does_not_read_are_drawn(page: Any, fake: Fake):
    shape = '<rect width="60" height="40" fill="#00f"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40">{shape}</svg>'.encode()
    attach(page, ("drawing.svg", "image/svg+xml", svg))
    ask(page, "?")
    kind, image = read(sent_pictures(fake.bodies[-1])[0])
    assert (kind, image.size, image.convert("RGB").getpixel((5, 5))) == ("image/png", (60, 40), (0, 0, 255))


def test_what_is_no_picture_is_named_and_not_sent(page: Any, fake: Fake):
    attach(page, ("notes.txt", "text/plain", b"hello"), ("broken.png", "image/png", png()[:40]))
    page.get_by_text("notes.txt is no picture").wait_for()
    page.get_by_text("broken.png is no picture").wait_for()
    ask(page, "Hi")
    assert sent_pictures(fake.bodies[-1]) == []


def drop(page: Any, files: list[tuple[str, str, bytes]], address: str = "") -> None:
    """Drag something over the page and let it go, with a DataTransfer as browsers make them."""
    transfer = page.evaluate_handle(
        """([files, address]) => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            if (address) transfer.setData("text/uri-list", address);
            return transfer;
        }""",
        [[(name, kind, base64.b64encode(data).decode()) for name, kind, data in files], address],
    )
    page.dispatch_event("#main", "dragover", {"dataTransfer": transfer})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("#main", "drop", {"dataTransfer": transfer})
    assert page.locator("#drop").is_hidden()


def test_dropped_files_are_attached(page: Any, fake: Fake):
    drop(page, [("a.png", "image/png", png(10, 10)), ("b.png", "image/png", png(20, 20))])
    ask(page, "?")
    assert sorted(read(address)[1].size for address in sent_pictures(fake.bodies[-1])) == [(10, 10), (20, 20)]


def test_a_picture_dragged_from_another_page_comes_by_its_address(page: Any, fake: Fake):
    drop(page, [], "https://example.org/cat.png")
    ask(page, "?")
    assert sent_pictures(fake.bodies[-1]) == ["https://example.org/cat.png"]


def test_a_picture_is_pasted(open_page: Any, fake: Fake):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (data) => {
            const blob = new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(png(33, 22, "blue")).decode(),
    )
    page.locator("#composer-text").press("Control+v")
    page.locator(f"{ATTACHED} img").wait_for()
    page.locator("#search").blur()
    page.keyboard.press("Control+v")  # wherever the focus is
    page.locator(f"{ATTACHED} img").nth(1).wait_for()
    ask(page, "?")
    assert [read(address)[1].size for address in sent_pictures(fake.bodies[-1])] == [(33, 22), (33, 22)]


def test_text_is_pasted_as_text(open_page: Any):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('just words')")
    page.locator("#composer-text").press("Control+v")
    assert page.input_value("#composer-text") == "just words"
    assert page.locator(ATTACHED).count() == 0


def test_by_address(page: Any, fake: Fake):
    page.get_by_label("Add a picture by its address").click()
    assert page.evaluate("document.activeElement.id") == "address-text"
    for wrong in ("javascript:alert(1)", "file:///etc/passwd", "no address", "data:image/png;base64,AA"):
        page.fill("#address-text", wrong)
        page.press("#address-text", "Enter")
        page.get_by_text("An address begins with http").first.wait_for()
        assert page.locator(ATTACHED).count() == 0
    page.fill("#address-text", " https://example.org/photos/cat%20one.jpg ")
    page.press("#address-text", "Enter")
    assert page.evaluate("document.activeElement.id") == "composer-text"
    assert "example.org" in page.locator(ATTACHED).inner_text()
    ask(page, "?")
    assert sent_pictures(fake.bodies[-1]) == ["https://example.org/photos/cat%20one.jpg"]
    assert page.locator(".message .thumb.linked").inner_text().split() == ["example.org", "cat", "one.jpg"]


def test_a_click_enlarges_and_escape_goes_back(page: Any):
    attach(page, ("wide.png", "image/png", png(800, 200)))
    ask(page, "Look")
    thumb = page.locator(".message .thumb")
    assert thumb.locator("img").bounding_box()["width"] <= 18 * 16 + 1
    thumb.click()
    image = page.locator("dialog img")
    image.wait_for()
    assert image.bounding_box()["width"] == pytest.approx(800, abs=1)
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert thumb.evaluate("thumb => thumb === document.activeElement")


def test_pictures_of_an_edited_message_can_be_changed(page: Any, fake: Fake):
    attach(page, ("a.png", "image/png", png(10, 10)))
    ask(page, "Look")
    page.locator(".message.user").hover()
    page.get_by_label("Edit and ask again").click()
    page.get_by_label("Remove: Picture a.png").click()
    attach(page, ("b.png", "image/png", png(20, 20)))
    ask_again = page.locator(f"{ATTACHED} img")
    ask_again.wait_for()
    page.press("#composer-text", "Enter")
    page.locator(".message.user img[alt*='b.png']").wait_for()
    page.locator(".costs:not([hidden])").wait_for()
    assert [read(address)[1].size for address in sent_pictures(fake.bodies[-1])] == [(20, 20)]


def test_samples_are_offered_for_the_pocket_model_only(open_page: Any, fake: Fake):
    assert open_page().locator("#samples li").count() == 0
    fake.models = ["pocket-vllama", "other"]
    page = open_page()
    page.get_by_role("button", name="What colour is the star?").click()
    page.locator(".costs:not([hidden])").wait_for()
    (address,) = sent_pictures(fake.bodies[-1])
    assert read(address)[1].size == (280, 260)
    page.click("#new-chat")
    assert page.locator("#samples li").count() == 3
    page.select_option("#model", "other")
    page.locator("#samples li").first.wait_for(state="detached")
