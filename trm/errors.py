"""The errors that the recommender raises at its boundaries."""


class TRMError(Exception):
    """Base of all errors of the trm package."""


class DatasetNotPrepared(TRMError):
    """A data set or its TRM is not on disk and may not, or cannot, be prepared now."""


class DataFormatError(TRMError):
    """A raw or prepared file is not what it should be; the message names file and line."""


class CheckpointError(TRMError):
    """A saved model is missing, cut short or of another shape."""


class RetrieverError(TRMError):
    """The retrieval service failed; says nothing about the query."""
