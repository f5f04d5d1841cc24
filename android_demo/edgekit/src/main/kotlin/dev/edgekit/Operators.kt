package dev.edgekit

import java.io.File

/** edgekit's native operators: a library that ONNX Runtime loads into its sessions, and that tells about itself here. */
internal object Operators {
    private var loaded: String? = null

    /**
     * "VERSION CHOSEN SUPPORTED...; NODES": the instruction set that kernels of new sessions use, those that the processor has, and how
     * many nodes it has run or will run. Only after [load].
     */
    @JvmStatic
    private external fun version(): String

    /**
     * Loads [library] and gives what it says of itself. Throws [RuntimeUnavailableException] when it cannot be loaded here or when
     * EDGEKIT_ISA names an instruction set that this processor lacks.
     */
    @Synchronized
    fun load(library: File): String {
        val path = library.absolutePath
        // The VM binds version() to the first library that has it, so a second one could not be asked.
        if (loaded != null && loaded != path) {
            throw RuntimeUnavailableException("$path: this process already uses $loaded; give the same library to every model")
        }
        val text = try {
            System.load(path)
            version()
        } catch (error: UnsatisfiedLinkError) {
            throw RuntimeUnavailableException("$path: cannot be loaded here: ${error.message}", error)
        }
        loaded = path
        val facts = text.substringBefore(';').split(' ')
        if (facts[1] == "none") {
            val have = facts.drop(2).joinToString(" ")
            throw RuntimeUnavailableException(
                "EDGEKIT_ISA=${System.getenv("EDGEKIT_ISA")}: this processor cannot run it; it has $have. " +
                    "Unset EDGEKIT_ISA to let the library choose",
            )
        }
        return text
    }

    /** How many nodes [facts], the text of [load], counts. */
    fun nodes(facts: String): Long = facts.substringAfter("; ", "").toLongOrNull() ?: 0
}
