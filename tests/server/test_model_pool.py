"""Models by name: loaded once, kept while they are used, unloaded in the right order, never taken for paths."""

import asyncio
import time
from pathlib import Path

import pytest

from pyvllama.errors import Cancelled, FormatError, ModelNotFound
from pyvllama.resolve import resolve
from pyvllama.server.model_list import ModelCard, default_card, model_cards
from pyvllama.server.model_pool import ModelPool
from pyvllama.types import Pair

CARDS = [
    ModelCard(name, Pair(Path(f"{name}.gguf"), Path("mmproj.gguf")), aliases)
    for name, aliases in (("first", ("alias", "Other:latest")), ("second", ()), ("third", ()))
]


class Fake:
    """What is asked of a ServedModel."""

    def __init__(self, name):
        self.name, self.is_closed = name, False

    async def close(self):
        self.is_closed = True


class Loader:
    def __init__(self, seconds=0.0):
        self.loaded, self.seconds = [], seconds

    def __call__(self, card):
        time.sleep(self.seconds)
        if card.name == "third":
            raise FormatError("third.gguf is damaged")
        self.loaded.append(Fake(card.name))
        return self.loaded[-1]

    @property
    def names(self):
        return [fake.name for fake in self.loaded]


def run(test, **options):
    """Run test(pool, loader) on a loop of its own."""

    async def main():
        loader = Loader(options.pop("seconds", 0.0))
        pool = ModelPool(lambda: CARDS, loader, **options)
        await asyncio.wait_for(test(pool, loader), 20)
        await pool.close()
        assert all(fake.is_closed for fake in loader.loaded)

    asyncio.run(main())


def test_names():
    async def test(pool, loader):
        for name in (None, "", "first", "FIRST", "first:latest", "alias", "alias:latest", "other"):
            async with pool.use(name) as model:
                assert model.name == "first"
        for name in (
            "firs",
            "../first",
            "first.gguf",
            "first:q4",
            "/etc/passwd",
            "org/repo",
            "ollama:first",
            "x" * 9999,
        ):
            with pytest.raises(ModelNotFound, match="not found"):
                async with pool.use(name):
                    pass
        assert loader.names == ["first"]

    run(test)


def test_asking_for_what_is_known_reads_no_directories():
    async def main():
        looks = []
        pool = ModelPool(lambda: looks.append(1) or CARDS, Loader(), default=CARDS[0], max_models=2)
        for name in (None, "alias", "first"):
            async with pool.use(name) as model:
                assert model.name == "first"
        assert looks == []
        for _ in range(2):
            async with pool.use("second") as model:
                assert model.name == "second"
        assert looks == [1]
        with pytest.raises(ModelNotFound):
            async with pool.use("nobody"):
                pass
        await pool.close()

    asyncio.run(main())


def test_many_at_once_load_a_model_once():
    async def test(pool, loader):
        async def one():
            async with pool.use("second") as model:
                await asyncio.sleep(0.01)
                assert not model.is_closed

        await asyncio.gather(*(one() for _ in range(50)))
        assert loader.names == ["second"]

    run(test, seconds=0.05)


def test_the_least_recently_used_makes_room():
    async def test(pool, loader):
        for name in ("first", "second", "first", "second", "first"):
            async with pool.use(name):
                pass
        assert loader.names == ["first", "second"]
        assert [entry.card.name for entry in pool.loaded()] == ["first", "second"]

    run(test, max_models=2)


def test_a_busy_model_is_waited_for_and_cannot_keep_others_out():
    async def test(pool, loader):
        order = []

        async def one(name, i, seconds):
            async with pool.use(name) as model:
                assert not model.is_closed
                order.append((name, i))
                await asyncio.sleep(seconds)
                assert not model.is_closed

        tasks = [asyncio.create_task(one("first", i, 0.05)) for i in range(3)]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(one("second", 0, 0))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(one("first", 9, 0))]
        await asyncio.gather(*tasks)
        assert order == [("first", 0), ("first", 1), ("first", 2), ("second", 0), ("first", 9)]
        assert loader.names == ["first", "second", "first"]

    run(test)


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_keep_alive(seconds):
    async def test(pool, loader):
        async with pool.use(None):
            pass
        async with pool.use(None):  # in time
            await asyncio.sleep(0.1)
        if seconds:
            (entry,) = pool.loaded()
            assert entry.expires_at is not None
        await asyncio.sleep(0.15)
        assert pool.loaded() == []
        assert loader.loaded[-1].is_closed
        async with pool.use(None, keep_alive_s=None):
            (entry,) = pool.loaded()
            assert entry.expires_at is None
        await asyncio.sleep(0.15)
        assert len(pool.loaded()) == 1

    run(test, keep_alive_s=seconds)


def test_unloaded_on_request_when_nobody_uses_it():
    async def test(pool, loader):
        assert not await pool.unload("first")
        async with pool.use("first"):
            assert await pool.unload("first")
            assert not loader.loaded[0].is_closed
        await asyncio.sleep(0.05)
        assert loader.loaded[0].is_closed
        async with pool.use("first"):
            pass
        assert await pool.unload("alias")
        assert loader.loaded[1].is_closed
        with pytest.raises(ModelNotFound):
            await pool.unload("nobody")

    run(test)


def test_what_cannot_be_loaded_harms_nobody():
    async def test(pool, loader):
        for _ in range(2):
            with pytest.raises(FormatError, match="damaged"):
                async with pool.use("third"):
                    pass
            async with pool.use("first"):
                pass

    run(test)


def test_closing_waits_for_answers_but_not_for_ever():
    async def main():
        loader = Loader()
        pool = ModelPool(lambda: CARDS, loader, max_models=2)
        ends = []

        async def one(name, seconds):
            async with pool.use(name) as model:
                await asyncio.sleep(seconds)
                ends.append((name, model.is_closed))

        tasks = [asyncio.create_task(one("first", 0.05)), asyncio.create_task(one("second", 1.0))]
        await asyncio.sleep(0.02)
        start = time.monotonic()
        closing = asyncio.create_task(pool.close(0.3))
        await asyncio.sleep(0.01)
        with pytest.raises(Cancelled, match="shutting down"):
            async with pool.use("first"):
                pass
        await closing
        assert 0.25 < time.monotonic() - start < 0.9
        assert ends == [("first", False)]
        await asyncio.gather(*tasks)
        assert ends[1] == ("second", True)

    asyncio.run(main())


def test_cards_of_real_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVLLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    pair = resolve(None)
    card = default_card(pair)
    assert card.name == "pocket-vllama"
    assert card.answers_to("pocket-vllama-Q4_K_M")
    assert card.type == "Q4_K_M"
    assert card.n_bytes == sum(p.stat().st_size for p in (pair.text, pair.mmproj))
    assert default_card(pair, ["llama3.2-vision", "x"]).name == "llama3.2-vision"
    assert default_card(pair, ["llama3.2-vision", "x"]).answers_to("X:latest")
    for path in (pair.text, pair.mmproj):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shards = [tmp_path / f"split-0000{i}-of-00002.gguf" for i in (1, 2)]
    for shard in shards:
        shard.write_bytes(pair.text.read_bytes())
    split = default_card(Pair(shards[0], tmp_path / pair.mmproj.name))
    assert split.n_bytes == 2 * pair.text.stat().st_size + pair.mmproj.stat().st_size
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
    assert model_cards(card) == [card]
    assert model_cards(None) == []
