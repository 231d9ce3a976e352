"""What pydantic says of data that is wrong, where it is said in a pool."""

from __future__ import annotations

from typing import Any

import pytest

from mppool import PoolManager

pytestmark = pytest.mark.everywhere

pydantic = pytest.importorskip("pydantic", reason="the extra `real` is not installed")


class User(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    name: str
    ages: list[int]

    @pydantic.field_validator("name")
    @classmethod
    def has_no_digits(cls, name: str) -> str:
        if any(each.isdigit() for each in name):
            raise ValueError("a name has no digits")
        return name


class Parser:
    def parse(self, data: Any) -> User:
        return User.model_validate(data)


WRONG = {"name": "ada1", "ages": [1, "x", float("nan")]}


def test_data_that_is_wrong_is_a_validation_error(manager: PoolManager) -> None:
    pool = manager.create_pool(Parser)
    with pytest.raises(pydantic.ValidationError) as local:
        User.model_validate(WRONG)
    with pool.lease() as parser:
        for parse in (parser.parse, lambda data: pool.apply(Parser.parse, data)):
            with pytest.raises(pydantic.ValidationError) as remote:
                parse(WRONG)
            assert str(remote.value) == str(local.value)
            assert (remote.value.title, remote.value.error_count()) == ("User", 3)
            where = [(each["type"], each["loc"]) for each in remote.value.errors()]
            assert where == [(each["type"], each["loc"]) for each in local.value.errors()]
            assert "in parse" in str(remote.value.__cause__)
            assert parse({"name": "ada", "ages": ["36"]}) == User(name="ada", ages=[36])
