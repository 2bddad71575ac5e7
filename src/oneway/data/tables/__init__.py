"""Tables of records: read from files, and encoded as numbers in [0, 1]."""

from oneway.data.tables.encoding import Column, RecordEncoding
from oneway.data.tables.files import Levels, TableFile, read_table_file
from oneway.data.tables.loading import Records, load_records

__all__ = [
    "Column",
    "Levels",
    "RecordEncoding",
    "Records",
    "TableFile",
    "load_records",
    "read_table_file",
]
