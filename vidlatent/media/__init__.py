"""Video and picture files in and out, and contact sheets.

    probe.py       what is in a file (``ClipInfo``), and whether all of it can be decoded
    decode.py      frames of it: a window at any frame rate, or all
    frames.py      its frames one after the other with their times; what is an edge, what is damage
    timeline.py    when frames are shown, from the time stamps of packets
    container.py   opening a video with PyAV
    pixels.py      one frame as pixels
    decoders.py    files left open between windows
    pictures.py    still pictures as videos of one frame, and which pictures move
    transforms.py  where a frame is scaled and cut
    errors.py      why a clip cannot be used, and what one may cost
    write.py       video files, two videos side by side
    sheets.py      contact sheets and other pictures for people

Import the module you need: this package loads nothing by itself, so that decoding processes start
quickly.
"""
