"""Read prepared datasets from other libraries."""
