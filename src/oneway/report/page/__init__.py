"""Pages for people who decide: one file of HTML each, that needs no network and no script."""
