"""The ratios of `elvi bench --speed` by theme: `measured(family, tell)` of a module yields those of its theme."""
