package dev.edgekit

import java.io.File

/** Runs edgekit's bundles on the CPU with ONNX Runtime. */
public object EdgeKit {
    /**
     * Opens the bundle in [directory]. Sizes of all files are checked always, their sha256 when [verify]; [progress] gets bytes, and an
     * exception that it raises ends the check and comes out. [threads] are the cores that a run uses. [library] is the operator library,
     * on Android that of `BundleAssets.operators`; bundles without low-bit layers do not need it. Blocks for seconds.
     *
     * Throws [BundleException] for a bundle that is missing, damaged or refused by ONNX Runtime, [RuntimeUnavailableException] when the
     * operator library is needed and missing, cannot be loaded or does not take over, [UsageException] for an impossible number of threads.
     */
    public fun open(
        directory: File,
        threads: Int = 1,
        library: File? = null,
        verify: Boolean = true,
        progress: (done: Long, total: Long) -> Unit = { _, _ -> },
    ): Model {
        val bundle = Bundle.open(directory)
        if (verify) bundle.checkHashes(progress)
        val needed = bundle.manifest.usesOperators
        if (needed && library == null) {
            throw RuntimeUnavailableException("$directory: its layers run on edgekit's operator library; give it as library")
        }
        return Model(bundle, Session(bundle.graph, threads, if (needed) library else null))
    }
}
