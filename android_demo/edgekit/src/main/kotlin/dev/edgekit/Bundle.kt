package dev.edgekit

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.Path
import java.security.MessageDigest

/**
 * A bundle's directory, opened with the rules of docs/spec.md: nothing is read but what the manifest lists, every path is confined, every
 * size checked before its file is used.
 */
internal class Bundle private constructor(val directory: File, val manifest: Manifest) {
    /** That of an encoder-decoder, a bundle in this one. */
    val encoder: Bundle? = manifest.decoder?.encoder?.let { encoder(it) }

    val graph = File(directory, Spec.GRAPH)

    /** The arrays of a golden vector by name. Throws [UsageException] for a number that has none, [BundleException]. */
    fun vector(index: Int): Map<String, Tensor> {
        val info = manifest.vectors.getOrNull(index)
            ?: throw UsageException("vector $index: $directory has ${manifest.vectors.size}, counted from 0")
        return Safetensors.read(File(directory, info.file))
    }

    fun has(path: String): Boolean = manifest.files.any { it.path == path }

    /** Compares every file with its sha256; [progress] gets bytes. Throws [BundleException] naming the file. */
    fun checkHashes(progress: (done: Long, total: Long) -> Unit) {
        val total = manifest.files.sumOf { it.bytes }
        var done = 0L
        progress(done, total)
        for (info in manifest.files) {
            val file = File(directory, info.path)
            val found = sha256(file) { count ->
                done += count
                progress(done, total)
            }
            if (found != info.sha256) {
                throw BundleException("$file: sha256 is not the manifest's; the file was changed, export or download the bundle again")
            }
        }
    }

    private fun encoder(info: EncoderInfo): Bundle {
        val inner = "${Spec.ENCODER}/${Spec.MANIFEST}"
        if (!has(inner)) { // a listed file is known to lie in plain directories
            throw BundleException("${File(directory, Spec.MANIFEST)}: $inner is not among the listed files; export or download again")
        }
        val place = File(directory, Spec.ENCODER)
        if (manifest(place).decoder != null) {
            throw BundleException("${File(directory, inner)}: is a decoder's, an encoder's is expected; export or download again")
        }
        val opened = open(place)
        val given = opened.manifest.outputs.associate { it.name to it.dims }
        for ((name, heads, dim) in info.crossed()) {
            val dims = given[name].orEmpty()
            if (dims.size == 4 && dims[1] == heads && dims[3] == dim) continue
            throw BundleException(
                "$place: output '$name' is $dims, the decoder reads $heads heads of $dim; encoder and decoder do not belong together, " +
                    "export or download again",
            )
        }
        return opened
    }

    companion object {
        private const val BLOCK = 1 shl 18

        // What some file system refuses, reads as something else, or ONNX Runtime gives a meaning of its own.
        private val NOT_PORTABLE = Regex("[\\u0000-\\u001f\\u007f<>:\"|?*\\\\]")
        private val DEVICE = Regex("(con|prn|aux|nul|com[0-9]|lpt[0-9])(\\..*)?", RegexOption.IGNORE_CASE)

        /** Opens and checks all but the hashes. Throws [BundleException]. */
        fun open(directory: File): Bundle {
            if (!directory.isDirectory) throw BundleException("$directory: no such directory; give a bundle that `edgekit export -o` made")
            if (!File(directory, Spec.MANIFEST).exists()) throw BundleException("$directory: no ${Spec.MANIFEST}; this is not an edgekit bundle")
            val manifest = manifest(directory)
            checkFiles(directory, manifest)
            return Bundle(directory, manifest)
        }

        /** The manifest alone. Throws [BundleException]. */
        fun manifest(directory: File): Manifest {
            val file = File(directory, Spec.MANIFEST)
            val size = plainFile(directory, Spec.MANIFEST, directory.path)
            if (size > Spec.LARGEST_MANIFEST) throw BundleException("$file: $size bytes, ${Spec.LARGEST_MANIFEST} at most; no manifest is that large")
            val text = try {
                Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(file.readBytes())).toString()
            } catch (error: CharacterCodingException) {
                throw BundleException("$file: not UTF-8 text; export or download the bundle again", error)
            } catch (error: IOException) {
                throw BundleException("$file: cannot be read (${error.message}); check the file's permissions", error)
            }
            return Manifest.parse(text, file.path)
        }

        private fun checkFiles(directory: File, manifest: Manifest) {
            val where = File(directory, Spec.MANIFEST).path
            val seen = HashSet<String>()
            for (info in manifest.files) {
                if (!seen.add(info.path.lowercase())) {
                    throw BundleException("$where: \"${info.path.take(120)}\" is listed twice (upper and lower case are one)")
                }
                val size = plainFile(directory, info.path, where)
                if (size != info.bytes) {
                    val file = File(directory, info.path)
                    throw BundleException("$file: $size bytes, the manifest says ${info.bytes}; export or download the bundle again")
                }
            }
            val listed = manifest.files.mapTo(HashSet()) { it.path }
            for (vector in manifest.vectors) {
                if (vector.file !in listed) {
                    throw BundleException("$where: vector \"${vector.file.take(120)}\" is not among the listed files")
                }
            }
            if (Spec.GRAPH !in listed) throw BundleException("$where: ${Spec.GRAPH} is not among the listed files")
        }

        /** Bytes of a file that is no link and lies where its [name] says. Throws [BundleException]. */
        private fun plainFile(directory: File, name: String, where: String): Long {
            confine(name, where)
            val path = File(directory, name).toPath()
            if (!Files.exists(path, LinkOption.NOFOLLOW_LINKS)) {
                throw BundleException("$where: \"$name\" is missing; export or download the bundle again")
            }
            if (!Files.isRegularFile(path, LinkOption.NOFOLLOW_LINKS)) {
                throw BundleException("$path: is a link or no file at all; a bundle holds plain files only")
            }
            if (links(path) > 1) throw BundleException("$path: has ${links(path)} hard links; a bundle's files are its own, copy them")
            try {
                if (path.toRealPath() != directory.toPath().toRealPath().resolve(name)) {
                    throw BundleException("$path: lies behind a link; a bundle holds plain directories only")
                }
                return Files.size(path)
            } catch (error: IOException) {
                throw BundleException("$path: cannot be read (${error.message}); check the file's permissions", error)
            }
        }

        /** Throws [BundleException] unless [name] is a plain relative path that every system reads alike. */
        fun confine(name: String, where: String) {
            val bad = NOT_PORTABLE.containsMatchIn(name) ||
                name.split('/').any { it.isEmpty() || it.endsWith('.') || it.endsWith(' ') || DEVICE.matches(it) }
            if (bad) {
                throw BundleException(
                    "$where: path \"${name.take(120)}\" is not a plain relative path inside the bundle; do not use this bundle",
                )
            }
        }

        private fun links(path: Path): Int = try {
            Files.getAttribute(path, "unix:nlink", LinkOption.NOFOLLOW_LINKS) as Int
        } catch (error: UnsupportedOperationException) {
            1 // no Unix
        } catch (error: IllegalArgumentException) {
            1
        }

        private fun sha256(file: File, progress: (Int) -> Unit): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val block = ByteArray(BLOCK)
            try {
                file.inputStream().use { input ->
                    while (true) {
                        val count = input.read(block)
                        if (count < 0) break
                        digest.update(block, 0, count)
                        progress(count)
                    }
                }
            } catch (error: IOException) {
                throw BundleException("$file: cannot be read (${error.message}); check the file's permissions", error)
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }
}
