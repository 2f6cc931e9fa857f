"""Which source a data set's declaration means.

Nothing here loads what reading takes, so that an idle agent may import it.
"""

from node_agent.data.datasets import DataSetSpec
from node_agent.sources.source import Source


def source_of(spec: DataSetSpec) -> Source:
    """Where a data set's records are; opens nothing."""
    if spec.database is not None:
        from node_agent.sources.sql_query import SqlQuery

        return SqlQuery(spec.name, spec.source, spec.database)
    if spec.source.suffix == ".parquet":
        from node_agent.sources.parquet_file import ParquetFile

        return ParquetFile(spec.source)
    from node_agent.sources.csv_file import CsvFile

    return CsvFile(spec.source)
