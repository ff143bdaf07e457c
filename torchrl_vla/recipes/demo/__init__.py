"""The main job, and the page that shows what came of it."""
