"""From kept samples to metrics: estimators, summaries, tables, the page, comparisons."""
