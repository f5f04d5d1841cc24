package dev.edgekit

/**
 * Every error that the engine raises on purpose. A message is one line: where, what was found, what was expected, what to do.
 */
public open class EdgeKitException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** A bundle that is missing, corrupt, unsafe or written by a newer edgekit. */
public class BundleException(message: String, cause: Throwable? = null) : EdgeKitException(message, cause)

/** A library, device or instruction set that the call needs is not there. */
public class RuntimeUnavailableException(message: String, cause: Throwable? = null) : EdgeKitException(message, cause)

/** A valid request that the engine does not implement; the message names the part. */
public class UnsupportedException(message: String, cause: Throwable? = null) : EdgeKitException(message, cause)

/** The call itself is wrong. */
public class UsageException(message: String, cause: Throwable? = null) : EdgeKitException(message, cause)
