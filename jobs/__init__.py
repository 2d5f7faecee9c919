"""The commands behind launch.sh, and the only package that imports Ray.

`commands` defines the arguments and the help of every command. The modules run them: `build`,
`index`, `verify`, and `inspect` for shard sets; `train`, `evaluate`, `predict`, `export`, and
`replay` for models; `watch` for what runs do; `demo` for a small example of everything; `bench` for
the benchmarks.

`config` reads a preset and the settings on the command line, and `check` validates them before any
process starts. `on_ray` runs work in processes that Ray starts. Errors become one line and an exit
code in `__main__`.

This package may import every other one, and none of them imports it.
"""

__version__ = "0.1.0"  # the version in pyproject.toml
