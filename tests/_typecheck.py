"""The run-time type checker of the tests: beartype, with int accepted for float as in PEP 484."""

import beartype

typechecked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
