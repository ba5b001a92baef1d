"""What an `input` refers to: items of the conversation before it, and calls that its outputs belong
to.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.dialects.response_items import checked, items_of
from services.gateway.errors import InvalidRequest

Item = dict[str, Any]
SAID: Item = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello"}],
}
CALL: Item = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "calc",
    "arguments": "{}",
}
CUSTOM: Item = {
    "type": "custom_tool_call",
    "id": "ct_1",
    "call_id": "c2",
    "name": "sh",
    "input": "ls",
}
OUTPUT: Item = {"type": "function_call_output", "call_id": "c1", "output": "11"}
ASKED: Item = {"role": "user", "content": "hi"}


def test_a_text_is_one_item() -> None:
    assert items_of("hi") == [ASKED]
    assert items_of([SAID]) == [SAID]


@pytest.mark.parametrize(
    "reference",
    [{"type": "item_reference", "id": "fc_1"}, {"type": None, "id": "fc_1"}, {"id": "fc_1"}],
)
def test_a_reference_is_the_item_that_it_names(reference: Item) -> None:
    assert checked([ASKED, SAID, CALL], [reference, OUTPUT]) == [CALL, OUTPUT]
    for before in ([], [SAID]):
        with pytest.raises(
            InvalidRequest, match=r"No item 'fc_1' to refer to\. Send the item itself"
        ) as caught:
            checked(before, [reference])
        assert (caught.value.param, caught.value.code) == ("input", "item_not_found")


def test_a_tools_output_follows_its_call() -> None:
    assert checked([CALL], [OUTPUT]) == [OUTPUT]
    assert checked([], [ASKED, CALL, OUTPUT]) == [ASKED, CALL, OUTPUT]
    custom = {"type": "custom_tool_call_output", "call_id": "c2", "output": "x"}
    assert checked([CUSTOM], [custom]) == [custom]
    for before, items in (
        ([], [OUTPUT]),
        ([], [OUTPUT, CALL]),
        ([CUSTOM], [OUTPUT]),
        ([CUSTOM], [{**OUTPUT, "call_id": "c2"}]),
    ):
        with pytest.raises(
            InvalidRequest, match="No tool call found for the function_call_output with call_id"
        ):
            checked(before, items)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
odd = st.dictionaries(
    st.sampled_from(["type", "id", "call_id", "role", "content"]),
    json | st.sampled_from(["item_reference", "fc_1"]),
)


@given(st.lists(json | odd, max_size=8), st.lists(json | odd, max_size=8))
def test_whatever_is_given_it_is_items_or_a_refusal(before: list[Any], items: list[Any]) -> None:
    try:
        found = checked(before, items)
    except InvalidRequest:
        return
    assert len(found) == len(items)
    assert all(new == old or new in before for new, old in zip(found, items, strict=True))
