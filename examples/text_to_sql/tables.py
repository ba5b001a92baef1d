"""The databases of the example: twenty, each of two tables; four of them are held out.

A row of the second table belongs to one of the first. Tables, columns (but for `id`) and values of
the held-out databases occur in no other.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

PARENTS = 12
ITEMS = 40


class Schema(NamedTuple):
    """Two tables: `parents`, and `items`, each of which has a parent."""

    name: str
    parents: str
    parent: str
    parent_label: str
    items: str
    label: str
    category: str
    categories: tuple[str, ...]
    number: str
    smallest: int
    largest: int

    @property
    def reference(self) -> str:
        """The column of `items` that names the parent."""
        return f"{self.parent}_id"

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns but `id`."""
        return self.parent_label, self.label, self.category, self.number, self.reference


TRAINING = (
    Schema(
        "library", "authors", "author", "name", "books", "title", "genre",
        ("novel", "poetry", "history", "crime"), "pages", 80, 900,
    ),
    Schema(
        "school", "teachers", "teacher", "name", "pupils", "pupil", "hobby",
        ("chess", "dance", "rowing", "judo"), "marks", 0, 100,
    ),
    Schema(
        "shop", "suppliers", "supplier", "company", "products", "product", "colour",
        ("red", "blue", "green", "black"), "price", 2, 400,
    ),
    Schema(
        "hospital", "doctors", "doctor", "surname", "patients", "patient", "ward",
        ("north", "south", "east", "west"), "weight", 40, 130,
    ),
    Schema(
        "zoo", "keepers", "keeper", "name", "animals", "animal", "species",
        ("lion", "zebra", "otter", "eagle"), "height", 20, 320,
    ),
    Schema(
        "cinema", "directors", "director", "surname", "films", "film", "mood",
        ("comedy", "drama", "thriller", "western"), "minutes", 60, 210,
    ),
    Schema(
        "league", "clubs", "club", "club_name", "players", "player", "position",
        ("keeper", "winger", "striker", "back"), "goals", 0, 60,
    ),
    Schema(
        "music", "bands", "band", "band_name", "songs", "song", "style",
        ("rock", "jazz", "folk", "soul"), "seconds", 90, 600,
    ),
    Schema(
        "bakery", "bakers", "baker", "name", "cakes", "cake", "topping",
        ("cherry", "cream", "almond", "lemon"), "slices", 4, 60,
    ),
    Schema(
        "airport", "airlines", "airline", "carrier", "flights", "code", "terminal",
        ("alpha", "beta", "gamma", "delta"), "passengers", 20, 400,
    ),
    Schema(
        "clinic", "vets", "vet", "surname", "pets", "pet_name", "breed",
        ("beagle", "collie", "poodle", "terrier"), "visits", 1, 60,
    ),
    Schema(
        "gym", "trainers", "trainer", "name", "members", "nickname", "sport",
        ("boxing", "yoga", "cycling", "swimming"), "points", 0, 500,
    ),
    Schema(
        "port", "captains", "captain", "surname", "ships", "ship_name", "flag",
        ("dutch", "greek", "danish", "irish"), "tons", 50, 900,
    ),
    Schema(
        "festival", "stages", "stage", "stage_name", "concerts", "act", "day",
        ("friday", "saturday", "sunday", "monday"), "tickets", 100, 990,
    ),
    Schema(
        "post", "offices", "office", "town", "parcels", "tracking", "zone",
        ("inner", "outer", "rural", "overseas"), "grams", 50, 5000,
    ),
    Schema(
        "college", "professors", "professor", "surname", "courses", "course", "subject",
        ("maths", "physics", "law", "biology"), "students", 5, 300,
    ),
)  # fmt: skip

HELD_OUT = (
    Schema(
        "hotel", "hotels", "hotel", "house", "rooms", "room", "view",
        ("sea", "garden", "street", "yard"), "rate", 30, 350,
    ),
    Schema(
        "farm", "fields", "field", "plot", "crops", "crop", "soil",
        ("clay", "sand", "loam", "peat"), "yield", 5, 95,
    ),
    Schema(
        "museum", "artists", "artist", "painter", "paintings", "caption", "technique",
        ("oil", "ink", "chalk", "fresco"), "year", 1500, 1990,
    ),
    Schema(
        "fleet", "depots", "depot", "site", "trucks", "plate", "fuel",
        ("diesel", "petrol", "electric", "gas"), "mileage", 1000, 90000,
    ),
)  # fmt: skip

WORDS = {
    "train": (
        ("Amber", "Brave", "Calm", "Dark", "Early", "Fair", "Golden", "High"),
        ("Anchor", "Bridge", "Castle", "Dawn", "Engine", "Forest", "Gate", "Harbour"),
    ),
    "heldout": (
        ("Icy", "Jolly", "Keen", "Lone", "Misty", "Noble", "Old", "Proud"),
        ("Island", "Journey", "Kettle", "Lantern", "Meadow", "Needle", "Orchard", "Pillar"),
    ),
}


def schemas(split: str) -> tuple[Schema, ...]:
    """The databases of a split."""
    return TRAINING if split == "train" else HELD_OUT


def names(split: str, count: int, chance: random.Random) -> list[str]:
    """Distinct names, such as `Amber Anchor`."""
    first, second = WORDS[split]
    return chance.sample([f"{one} {other}" for one in first for other in second], count)


def make_database(schema: Schema, split: str, folder: Path) -> Path:
    """Write the SQLite file; the rows are the same each time."""
    chance = random.Random(schema.name)
    found = names(split, PARENTS + ITEMS, chance)
    file = folder / f"{schema.name}.sqlite"
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            f"CREATE TABLE {schema.parents} (id INTEGER PRIMARY KEY, {schema.parent_label} TEXT)"
        )
        connection.execute(
            f"CREATE TABLE {schema.items} (id INTEGER PRIMARY KEY, {schema.label} TEXT, "
            f"{schema.category} TEXT, {schema.number} INTEGER, {schema.reference} INTEGER "
            f"REFERENCES {schema.parents} (id))"
        )
        connection.executemany(
            f"INSERT INTO {schema.parents} VALUES (?, ?)", enumerate(found[:PARENTS], 1)
        )
        # Distinct, so that the highest and the lowest are one row each.
        numbers = chance.sample(range(schema.smallest, schema.largest + 1), ITEMS)
        connection.executemany(
            f"INSERT INTO {schema.items} VALUES (?, ?, ?, ?, ?)",
            [
                (
                    place,
                    name,
                    chance.choice(schema.categories),
                    numbers[place % ITEMS],
                    chance.randint(1, PARENTS),
                )
                for place, name in enumerate(found[PARENTS:], 1)
            ],
        )
    return file
