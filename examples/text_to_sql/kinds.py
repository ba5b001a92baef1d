"""The kinds of question: the query that answers each, and how it is asked.

Training asks in five wordings a kind, which differ in structure. The examination asks in another
one. All wordings of a kind name the same things, in braces: what a database and chance put there.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of question: its query, and how it is asked in training and in the examination."""

    query: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]


KINDS = (
    Kind(
        "SELECT COUNT(*) FROM {items}",
        (
            "How many {items} are there?",
            "Count the {items}.",
            "Tell me how many {items} the database has.",
            "I want the total count of {items}.",
            "Of {items}, how many do we have?",
        ),
        ("What is the number of {items}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {category} = '{value}'",
        (
            "List the {label} of all {items} with {category} {value}.",
            "Which {items} have {category} {value}? Give the {label}.",
            "Look for {items} with {value} as {category} and list the {label} of each.",
            "I want the {label} of each of the {items} that has the {category} {value}.",
            "The {category} must be {value}: list the {label} of these {items}.",
        ),
        ("Show the {label} of the {items} whose {category} is {value}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} > {limit}",
        (
            "List the {label} of all {items} with {number} above {limit}.",
            "Which {items} have {number} over {limit}? Give the {label}.",
            "Look for {items} with {number} exceeding {limit} and list the {label} of each.",
            "I want the {label} of each of the {items} that exceeds {limit} in {number}.",
            "The {number} must be more than {limit}: list the {label} of these {items}.",
        ),
        ("Show the {label} of the {items} whose {number} is greater than {limit}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} < {limit}",
        (
            "List the {label} of all {items} with {number} below {limit}.",
            "Which {items} have {number} under {limit}? Give the {label}.",
            "Look for {items} with {number} lower than {limit} and list the {label} of each.",
            "I want the {label} of each of the {items} that stays under {limit} in {number}.",
            "The {number} must be less than {limit}: list the {label} of these {items}.",
        ),
        ("Show the {label} of the {items} whose {number} is smaller than {limit}.",),
    ),
    Kind(
        "SELECT {function}({number}) FROM {items}",
        (
            "What is the {word} {number} of all {items}?",
            "Give the {word} {number} of the {items}.",
            "Look at all {items} and work out the {word} {number}.",
            "I want the {word} {number} over all {items}.",
            "Taking all {items} together, how much is the {word} {number}?",
        ),
        ("Find the {word} {number} among the {items}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} ORDER BY {number} {order} LIMIT 1",
        (
            "Which of the {items} has the {superlative} {number}? Give the {label}.",
            "Give the {label} of the {items} with the {superlative} {number}.",
            "Look for the {superlative} {number} of the {items} and give the {label} beside it.",
            "I want the {label} of the one with the {superlative} {number}, out of all {items}.",
            "Sort the {items} by {number}: what {label} goes with the {superlative}?",
        ),
        ("Name the {label} that has the {superlative} {number} of all {items}.",),
    ),
    Kind(
        "SELECT {category}, COUNT(*) FROM {items} GROUP BY {category}",
        (
            "How many {items} are there for each {category}?",
            "Count the {items} by {category}.",
            "Group the {items} by {category} and count each group.",
            "I want a table of each {category} and how many {items} it has.",
            "For every {category}, give it and the count of {items}.",
        ),
        ("Show each {category} with its number of {items}.",),
    ),
    Kind(
        "SELECT COUNT(*) FROM {items} WHERE {category} = '{value}'",
        (
            "How many {items} have {category} {value}?",
            "Count the {items} with {category} {value}.",
            "Look for {items} with {value} as {category} and count them.",
            "I want to know how many of the {items} have the {category} {value}.",
            "The {category} must be {value}: how many {items} are left?",
        ),
        ("What is the number of {items} whose {category} is {value}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} JOIN {parents} ON {reference} = {parents}.id "
        "WHERE {parent_label} = '{owner}'",
        (
            "List the {label} of all {items} of the {parent} {owner}.",
            "Which {items} belong to the {parent} {owner}? Give the {label}.",
            "Look for {items} with {owner} as {parent} and list the {label} of each.",
            "For the {parent} called {owner}, give the {label} of each of the {items}.",
            "The {parent} must be {owner}: list the {label} of these {items}.",
        ),
        ("Show the {label} of the {items} whose {parent} is {owner}.",),
    ),
    Kind(
        "SELECT COUNT(*) FROM {items} JOIN {parents} ON {reference} = {parents}.id "
        "WHERE {parent_label} = '{owner}'",
        (
            "How many {items} does the {parent} {owner} have?",
            "Count the {items} of the {parent} {owner}.",
            "Look for {items} with {owner} as {parent} and count them.",
            "For the {parent} called {owner}, how many {items} are there?",
            "The {parent} must be {owner}: how many {items} are left?",
        ),
        ("What is the number of {items} whose {parent} is {owner}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {category} = '{value}' AND {number} > {limit}",
        (
            "List the {label} of all {items} with {category} {value} and {number} above {limit}.",
            "Which {items} have {category} {value} and {number} over {limit}? Give the {label}.",
            "Look for {items} with {value} as {category} and {number} exceeding {limit} and list "
            "the {label} of each.",
            "I want the {label} of each of the {items} that has the {category} {value} and exceeds "
            "{limit} in {number}.",
            "The {category} must be {value} and the {number} more than {limit}: list the {label} "
            "of these {items}.",
        ),
        (
            "Show the {label} of the {items} whose {category} is {value} and whose {number} is "
            "greater than {limit}.",
        ),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} > (SELECT AVG({number}) FROM {items})",
        (
            "List the {label} of all {items} with {number} above the average.",
            "Which {items} have {number} over the average? Give the {label}.",
            "Look for {items} with {number} exceeding the average and list the {label} of each.",
            "I want the {label} of each of the {items} that exceeds the average in {number}.",
            "The {number} must be more than the average: list the {label} of these {items}.",
        ),
        ("Show the {label} of the {items} whose {number} is greater than the mean.",),
    ),
    Kind(
        "SELECT {category} FROM {items} GROUP BY {category} HAVING COUNT(*) > {few}",
        (
            "Which {category} has more than {few} {items}?",
            "List each {category} with more than {few} {items}.",
            "Group the {items} by {category} and list the groups of more than {few}.",
            "I want every {category} that more than {few} of the {items} have.",
            "There must be more than {few} {items} of it: list each such {category}.",
        ),
        ("Show every {category} that is given to over {few} {items}.",),
    ),
)

FUNCTIONS = {"MAX": "largest", "MIN": "smallest", "AVG": "average", "SUM": "total"}
ORDERS = {"DESC": "highest", "ASC": "lowest"}
