"""Data sets in other formats than Label Studio's, to read and to write: `lsml convert`, `--from FORMAT`.

    registry          the table of formats: name, module, what it needs
    dataset_source    the base class of readers: a `TaskSource` whose records are Label Studio's tasks
    dataset_writer    the base class of writers: a folder that appears when it is complete
    config_binding    which control of a label config gets what a reader finds, or a config made for it
    image_regions     regions on an image with their labels and shapes, as writers of image formats want them
    image_set         names, sizes and files of the images of a data set
    span_source       the base class of readers of texts with labelled spans
    span_writer       the base class of writers with files for each control
    text_spans        labelled spans of the texts of a task, as writers of text formats want them
    word_boundaries   tokens of a text in any script
    label_column      tables with a column of labels: the base class of their readers
    row_spool         rows of tables that are written, which wait until all columns are known
    output_folder     the folder of a writer, and files in it that stay in it
    convert           read tasks, write a data set
    coco, ...         one module for each format, with its reader and its writer

To add a format: write its module, with a subclass of `DatasetSource`, of `DatasetWriter`, or both, and add a line to
`FORMATS` in `registry`. Everything else follows from there: options, help, completion, recognition of errors.
"""
