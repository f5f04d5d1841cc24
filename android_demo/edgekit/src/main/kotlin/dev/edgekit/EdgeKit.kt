package dev.edgekit

import dev.edgekit.pack.Unpacking
import java.io.File

/** Runs edgekit's bundles on the CPU with ONNX Runtime. */
public object EdgeKit {
    /**
     * Opens the bundle in [directory]. Sizes of all files are checked always, their sha256 when [verify]; [progress] gets bytes, and an
     * exception that it raises ends the check and comes out. [threads] are the cores that a run uses. [library] is the operator library,
     * on Android that of `BundleAssets.operators`; bundles without low-bit layers do not use it, those of `int4` are faster with it. Blocks for seconds.
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
        if (listOfNotNull(bundle, bundle.encoder).any { it.manifest.needsOperators } && library == null) {
            throw RuntimeUnavailableException("$directory: its layers run on edgekit's operator library; give it as library")
        }
        val encoder = bundle.encoder?.let { session(it, threads, library) }
        try {
            return Model(bundle, session(bundle, threads, library), encoder)
        } catch (error: EdgeKitException) {
            encoder?.close()
            throw error
        }
    }

    private fun session(bundle: Bundle, threads: Int, library: File?): Session {
        val manifest = bundle.manifest
        return Session(bundle.graph, threads, if (manifest.usesOperators) library else null, manifest.needsOperators)
    }

    /**
     * Makes the bundle of [pack], a file that `edgekit pack` made, in [directory], which must not be there or be empty. It is unpacked chunk
     * by chunk beside it, every file is checked with the manifest's sha256, and then moved into place; whatever fails, nothing is left.
     * [base] is the directory of the older version that a delta pack needs. With [verifyKey], the X.509 form of a public Ed25519 key, the
     * pack must be signed by its owner. [progress] gets bytes, and an exception that it raises ends the work and comes out. Blocks for
     * seconds.
     *
     * Throws [BundleException] for a pack that is cut, damaged or unsafe, [UsageException] when [directory] holds something, cannot be
     * made or has too little room, or [base] is missing or another version, [RuntimeUnavailableException] where signatures cannot be checked.
     */
    public fun unpack(
        pack: File,
        directory: File,
        base: File? = null,
        verifyKey: ByteArray? = null,
        progress: (done: Long, total: Long) -> Unit = { _, _ -> },
    ) {
        Unpacking(pack, directory, base, verifyKey, progress).run()
    }
}
