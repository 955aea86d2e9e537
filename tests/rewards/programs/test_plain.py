"""Values crossing between mutually distrusting processes: what survives, what is refused."""

import pytest

from rewards.programs.sandbox.inside import plain


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 0.5, float("inf"), "\ud800é", b"\x00", (1, (2,)), [[], {}], {1: "a", (2,): None}, {1, 2},
     frozenset({"a"}), 1 + 2j, int, [-(10**5000)]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_values_survive_the_round_trip(value):
    arrived = plain.loads(plain.dumps(value))
    assert arrived == value and type(arrived) is type(value)


@pytest.mark.parametrize(
    "text", ["", "[", '{"t":"os","v":1}', '{"t":"ref","v":0}', '{"v":1}', "[" * 10**6, '{"t":"set","v":[[]]}']
)
def test_texts_that_encode_no_value_are_refused(text):
    with pytest.raises(plain.NotPlainError):
        plain.loads(text)


class Node:
    def __init__(self, val, next=None):
        self.val, self.next = val, next

    def same(self, other):
        return self.val == other.val


def test_objects_of_shared_classes_arrive_as_the_receivers_class():
    class Theirs:
        pass

    ring = Node(1)
    ring.next = Node((2, 3), ring)
    text = plain.dumps([ring, ring.next], classes={"Node": Node})
    first, second = plain.loads(text, classes={"Node": Theirs})
    assert type(first) is type(second) is Theirs
    assert (first.val, second.val, first.next is second, second.next is first) == (1, (2, 3), True, True)
    with pytest.raises(plain.NotPlainError, match="Node is not a plain value"):
        plain.dumps(ring, classes={"Node": Theirs})


@pytest.mark.parametrize(
    "objects",
    [
        '[["Node",{"same":{"t":"type","v":"bool"}}]]',  # bool(other) is true
        '[["Node",{"__class__":{"t":"type","v":"bool"}}]]',
        '[["Other",{"val":1}]]',
        '[["Node",{"val":{"t":"object","v":1}}]]',
        '[["Node",[1]]]',
        "[]",
    ],
)
def test_objects_carrying_more_than_data_are_refused(objects):
    with pytest.raises(plain.NotPlainError):
        plain.loads('{"t":"objects","v":[{"t":"object","v":0},' + objects + "]}", classes={"Node": Node})
