"""The 3D view in the browser, by viser: of a folder of results, of a running node, and as a page that opens without a server.

content.py: what is shown, as arrays. scene.py: from there to viser's scene. page.py: the page without a server. server.py: the served page,
with its controls. Nothing here needs ROS.
"""

MOST_POINTS, MOST_KEYFRAMES, COLUMNS = 2_000_000, 150, 2
"""that a served view shows, unless more are asked for; columns of the pictures of a keyframe"""
PAGE_POINTS, PAGE_KEYFRAMES, PAGE_COLUMNS = 300_000, 60, 3
"""in a page without a server, so that it has some 10 MB and opens in seconds anywhere"""
LIVE_POINTS = 500_000
"""of a running node"""
