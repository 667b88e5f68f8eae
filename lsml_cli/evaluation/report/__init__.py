"""Write an evaluation as one self-contained HTML page: no network, no script, no font.

page        the whole page, and the file it is written to
sections    what the page says about one control
charts      bars, class tables, matrices and curves
gallery     cards of the tasks on which model and people disagree most
examples    the texts and images of these tasks
drawing     outlines of regions on images
formatting  texts and numbers as plain text
templating  the Jinja2 environment that renders `templates/`
"""
