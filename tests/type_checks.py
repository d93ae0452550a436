"""The type checker that the tests run on every annotated call; named in pyproject.toml.

Beartype, told that an int is welcome where a float is written, as every Python type checker holds.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
