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


class RetrieverUnavailable(RetrieverError):
    """The service did not answer in spite of all retries: it is down, restarting or too slow."""


class RetrieverRefused(RetrieverError):
    """The service answered that the request is wrong, or with something that is no answer; asking again is no use."""


class ReplayMiss(RetrieverError):
    """A recording was asked for what it does not hold."""
