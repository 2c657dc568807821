//! A CSV that others rename, replace, cut and edit while replicas write to it.
