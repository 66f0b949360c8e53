"""Video and picture files in and out, and contact sheets.

Import the module you need (``vidlatent.media.decode``, ``vidlatent.media.write``, ...): this
package loads nothing by itself, so that decoding processes start quickly.
"""
