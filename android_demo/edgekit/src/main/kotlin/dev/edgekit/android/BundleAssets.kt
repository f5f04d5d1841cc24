package dev.edgekit.android

import android.content.Context
import android.content.res.AssetManager
import dalvik.system.BaseDexClassLoader
import dev.edgekit.BundleException
import dev.edgekit.EdgeKitException
import dev.edgekit.Json
import dev.edgekit.JsonException
import java.io.File
import java.io.FileNotFoundException
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest

/**
 * Bundles that came inside an app, in `assets/bundles/NAME`. ONNX Runtime maps weights from a file, so a bundle is copied out of the
 * app once, to `bundles/NAME` below the directory of the app's files.
 */
public class BundleAssets internal constructor(
    private val list: () -> List<String>,
    private val open: (path: String) -> InputStream,
    files: File,
) {
    /** [files] is usually `context.filesDir`. */
    public constructor(assets: AssetManager, files: File) : this(
        { assets.list(FOLDER).orEmpty().toList() },
        { assets.open(it, AssetManager.ACCESS_STREAMING) },
        files,
    )

    private val root = File(files, FOLDER)

    /** The bundles in the app. */
    public fun names(): List<String> = list().sorted()

    /**
     * The directory of the bundle [name], copied there unless it is there already. Every file is checked against the manifest's
     * SHA-256 on the way, and the directory appears whole or not at all. [progress] gets bytes; an exception that it raises ends the
     * copy and comes out. Blocks for seconds: call it from a thread of its own, and for one bundle only once at a time.
     *
     * Throws [BundleException] when the app has no such bundle or its files are not what the manifest says, [EdgeKitException] when
     * there is too little space or a file cannot be written.
     */
    public fun copy(name: String, progress: (done: Long, total: Long) -> Unit = { _, _ -> }): File {
        val manifest = manifest(name)
        val files = listed(name, manifest)
        val target = File(root, name)
        if (isCopied(target, manifest, files)) return target
        val partial = File(root, "$name.partial")
        partial.deleteRecursively()
        try {
            makeRoom(name, files.sumOf { it.bytes } + manifest.size)
            fill(partial, name, manifest, files, progress)
            target.deleteRecursively()
            if (!partial.renameTo(target)) throw EdgeKitException("$partial could not be renamed to $target")
        } catch (error: IOException) {
            throw EdgeKitException("bundle \"$name\": copying it to $root failed: ${error.message}", error)
        } finally {
            partial.deleteRecursively()
        }
        return target
    }

    private fun manifest(name: String): ByteArray {
        // A name is one directory; names() has no others.
        if (name.isEmpty() || name == "." || name == ".." || name.any { it == '/' || it == '\\' }) {
            throw BundleException("\"$name\" is not the name of a bundle; give one of names()")
        }
        return try {
            open("$FOLDER/$name/$MANIFEST").use { it.readBytes() }
        } catch (error: FileNotFoundException) {
            throw BundleException("the app has no bundle \"$name\": $FOLDER/$name/$MANIFEST is not in its assets", error)
        } catch (error: IOException) {
            throw EdgeKitException("bundle \"$name\": $MANIFEST could not be read from the app: ${error.message}", error)
        }
    }

    private class Listed(val path: String, val bytes: Long, val sha256: String)

    /** The manifest's files. Only what copying needs is read here; EdgeKit.open reads the manifest with all its rules. */
    private fun listed(name: String, manifest: ByteArray): List<Listed> {
        val where = "bundle \"$name\": $MANIFEST"
        val document = try {
            Json.parse(String(manifest, Charsets.UTF_8))
        } catch (error: JsonException) {
            throw BundleException("$where is not JSON: ${error.message}", error)
        }
        val files = (document as? Map<*, *>)?.get("files") as? List<*>
            ?: throw BundleException("$where has no list \"files\"; export the bundle again")
        return files.map { item ->
            val entry = item as? Map<*, *>
            val path = entry?.get("path") as? String
            val bytes = entry?.get("bytes") as? Long
            val sha256 = entry?.get("sha256") as? String
            if (path == null || bytes == null || bytes !in 0..MAX_FILE || sha256 == null) {
                throw BundleException("$where: an entry of \"files\" is not {path, bytes, sha256}; export the bundle again")
            }
            if (path.contains('\\') || path.split('/').any { it.isEmpty() || it == "." || it == ".." }) {
                throw BundleException("$where: the path \"$path\" leads out of the bundle")
            }
            Listed(path, bytes, sha256)
        }
    }

    private fun isCopied(target: File, manifest: ByteArray, files: List<Listed>): Boolean {
        val there = File(target, MANIFEST)
        return there.length() == manifest.size.toLong() && there.readBytes().contentEquals(manifest) &&
            files.all { File(target, it.path).length() == it.bytes }
    }

    private fun makeRoom(name: String, bytes: Long) {
        if (!root.isDirectory && !root.mkdirs()) throw EdgeKitException("the directory $root cannot be made")
        val free = root.usableSpace
        if (free < bytes) {
            throw EdgeKitException("bundle \"$name\" needs ${megabytes(bytes)} MB, $root has ${megabytes(free)} MB free; make room")
        }
    }

    private fun fill(
        partial: File,
        name: String,
        manifest: ByteArray,
        files: List<Listed>,
        progress: (done: Long, total: Long) -> Unit,
    ) {
        val total = files.sumOf { it.bytes }
        var before = 0L
        for (file in files) {
            val target = File(partial, file.path)
            target.parentFile?.mkdirs()
            val source = try {
                open("$FOLDER/$name/${file.path}")
            } catch (error: FileNotFoundException) {
                throw BundleException("bundle \"$name\": the app lacks the file ${file.path}; build the app again", error)
            }
            val found = source.use { write(it, target, file.bytes) { done -> progress(before + done, total) } }
            if (found != file.sha256) {
                throw BundleException(
                    "bundle \"$name\": ${file.path} is not the file that the manifest lists (SHA-256 ${found ?: "of too many bytes"}, " +
                        "expected ${file.sha256}); build the app again",
                )
            }
            before += file.bytes
        }
        // Last: a directory with a manifest is a bundle.
        write(manifest.inputStream(), File(partial, MANIFEST), manifest.size.toLong()) {}
    }

    /** SHA-256 of what was written, or null when there was more than [limit] bytes. */
    private fun write(source: InputStream, target: File, limit: Long, progress: (Long) -> Unit): String? {
        val digest = MessageDigest.getInstance("SHA-256")
        val block = ByteArray(BLOCK)
        var done = 0L
        FileOutputStream(target).use { out ->
            while (true) {
                val count = source.read(block)
                if (count < 0) break
                done += count
                if (done > limit) return null
                out.write(block, 0, count)
                digest.update(block, 0, count)
                progress(done)
            }
            out.fd.sync()
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    public companion object {
        private const val FOLDER = "bundles"
        private const val MANIFEST = "manifest.json"
        private const val BLOCK = 1 shl 18
        private const val MAX_FILE = 1L shl 40 // bytes, so that the sum of all files is still a Long

        /**
         * The operator library in the app, for `EdgeKit.open`; null when the app has none for this processor. It is usually no file of
         * its own but a path into the APK, `base.apk!/lib/arm64-v8a/libedgekit_ops.so`, which Android's loader takes.
         */
        public fun operators(context: Context): File? =
            (context.classLoader as? BaseDexClassLoader)?.findLibrary("edgekit_ops")?.let { File(it) }

        private fun megabytes(bytes: Long): Long = (bytes + 999_999) / 1_000_000
    }
}
