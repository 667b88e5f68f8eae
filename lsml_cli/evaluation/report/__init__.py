"""An evaluation as one HTML page that needs nothing else: no network, no script, no font.

page      the whole page, and the file that it is written to
sections  what the page says about one control
charts    bars, curves and matrices, as SVG and tables
gallery   the tasks on which model and people disagree most, with their pictures
markup    text -> markup: names of labels and texts come from strangers
"""
