"""Write an evaluation, or a survey of predictions, as one self-contained HTML page: no network, no script, no font.

page        the whole page, and the file it is written to
sections    what the page says about one control
charts      bars, class tables, matrices and curves
gallery     cards of the tasks on which model and people disagree most
survey_page the page of a survey, and the file it is written to
task_cards  cards of tasks with what was predicted for them
task_text   the same in one line of a table
marked_text texts with spans marked in them
examples    the texts and images of these tasks
drawing     outlines of regions on images
formatting  texts and numbers as plain text
templating  the Jinja2 environment that renders `templates/`
"""
