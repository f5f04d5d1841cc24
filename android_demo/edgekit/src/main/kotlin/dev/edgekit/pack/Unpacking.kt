package dev.edgekit.pack

import dev.edgekit.Bundle
import dev.edgekit.BundleException
import dev.edgekit.RuntimeUnavailableException
import dev.edgekit.Spec
import dev.edgekit.UsageException
import java.io.BufferedInputStream
import java.io.DataInputStream
import java.io.EOFException
import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.RandomAccessFile
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.NoSuchAlgorithmException
import java.security.Signature
import java.security.spec.X509EncodedKeySpec

/** Makes the bundle of [pack] in a directory beside [target], checks it and moves it there; whatever fails, nothing is left. */
internal class Unpacking(
    private val pack: File,
    private val target: File,
    private val base: File?,
    private val verifyKey: ByteArray?,
    private val progress: (done: Long, total: Long) -> Unit,
) {
    private val chunks = ChunkDecoder()
    private var done = 0L

    /** Throws what `EdgeKit.unpack` does. */
    fun run() {
        if (target.exists() && target.list()?.isEmpty() != true) {
            throw UsageException("$target: is there already; remove it or give another directory")
        }
        val partial = File(target.absoluteFile.parentFile, ".${target.name}.partial-${System.nanoTime()}")
        try {
            DataInputStream(BufferedInputStream(pack.inputStream(), BUFFER)).use { input ->
                val head = PackHead.read(input, pack.path)
                check(head)
                if (!partial.mkdirs()) throw UsageException("$partial: cannot be made; give a place that can be written")
                write(head, input, partial)
            }
            Bundle.open(partial)
            if (target.exists() && !target.delete() || !partial.renameTo(target)) {
                throw UsageException("$target: cannot be made; give a place that can be written")
            }
        } catch (error: IOException) {
            throw BundleException("$pack: cannot be unpacked (${error.message}); check the file and the space on the disk", error)
        } finally {
            partial.deleteRecursively()
        }
    }

    private fun check(head: PackHead) {
        if (verifyKey != null) checkSignature(head, verifyKey)
        val size = pack.length()
        if (size < head.total) throw BundleException("$pack: ends at byte $size of ${head.total}; go on with the download there")
        if (size > head.total) throw BundleException("$pack: $size bytes, its head lists ${head.total}; download it again")
        val free = target.absoluteFile.parentFile?.usableSpace ?: 0
        if (free in 1 until head.nbytes) {
            throw UsageException("$target: ${head.nbytes} bytes needed for the bundle, $free free; make room or give another directory")
        }
        if (head.base.isEmpty()) return
        val needed = "holds only what differs from the version with manifest sha256 ${head.base.take(16)}..."
        if (base == null) throw UsageException("$pack: $needed; give that bundle as base")
        val found = hex(MessageDigest.getInstance("SHA-256").digest(File(base, Spec.MANIFEST).readBytes()))
        if (found != head.base) throw UsageException("$pack: $needed; $base has ${found.take(16)}...")
    }

    private fun checkSignature(head: PackHead, key: ByteArray) {
        val signature = head.signature ?: throw BundleException("$pack: is not signed, and a key was to prove who made it; do not use it")
        val good = try {
            val public = KeyFactory.getInstance("Ed25519").generatePublic(X509EncodedKeySpec(key))
            Signature.getInstance("Ed25519").run {
                initVerify(public)
                update(head.prologue)
                verify(signature)
            }
        } catch (error: NoSuchAlgorithmException) {
            throw RuntimeUnavailableException("$pack: this system cannot check Ed25519 signatures (Android 13 and newer can)", error)
        } catch (error: GeneralSecurityException) {
            throw UsageException("the key is no X.509 form of a public Ed25519 key (${error.message})", error)
        }
        if (!good) throw BundleException("$pack: its signature is not by the key's owner, or its head was changed; do not use this pack")
    }

    private fun write(head: PackHead, input: DataInputStream, directory: File) {
        val bundle = if (head.base.isEmpty()) null else Bundle.open(base!!)
        progress(0, head.nbytes)
        head.files.forEachIndexed { index, file ->
            writeFile(file, head, input, directory, bundle)
            if (index == 0) checkManifest(head, directory)
        }
    }

    /** The manifest lists what the head does, so nothing else is written and every sha256 is the manifest's. */
    private fun checkManifest(head: PackHead, directory: File) {
        val listed = Bundle.manifest(directory).files.map { Triple(it.path, it.bytes, it.sha256) }
        if (listed != head.files.drop(1).map { Triple(it.path, it.bytes, it.sha256) }) {
            throw BundleException("$pack: its head and its manifest list different files; do not use this pack")
        }
    }

    private fun writeFile(file: PackedFile, head: PackHead, input: DataInputStream, directory: File, bundle: Bundle?) {
        val path = File(directory, file.path)
        path.parentFile?.mkdirs()
        val digest = MessageDigest.getInstance("SHA-256")
        FileOutputStream(path).use { out ->
            file.chunks.forEachIndexed { index, chunk ->
                val data = chunk(file, index, chunk, input, bundle)
                digest.update(data)
                out.write(data)
                done += data.size
                progress(done, head.nbytes)
            }
            out.fd.sync()
        }
        if (hex(digest.digest()) != file.sha256) {
            throw BundleException("$pack: \"${file.path}\" does not have the sha256 of the manifest when unpacked; it or the base is damaged")
        }
    }

    private fun chunk(file: PackedFile, index: Int, chunk: PackChunk, input: DataInputStream, bundle: Bundle?): ByteArray {
        val where = "$pack: chunk $index of \"${file.path}\""
        val old = chunk.base?.let { baseBytes(file, chunk, it, bundle!!, where) }
        val packed = if (chunk.packed == 0) old!! else ByteArray(chunk.packed)
        try {
            if (chunk.packed > 0) input.readFully(packed)
        } catch (error: EOFException) {
            throw BundleException("$pack: ends inside chunk $index of \"${file.path}\"; go on with the download", error)
        }
        if (hex(MessageDigest.getInstance("SHA-256").digest(packed)) != chunk.sha256) {
            val what = if (chunk.packed == 0) "the base version's bytes are not those that the pack was made from" else "is damaged (sha256)"
            throw BundleException("$where: $what; download the pack again")
        }
        if (chunk.packed == 0) return packed
        return try {
            chunks.decode(packed, chunk.bytes, old)
        } catch (error: Damaged) {
            throw BundleException("$where: ${error.message}; do not use this pack", error)
        }
    }

    private fun baseBytes(file: PackedFile, chunk: PackChunk, start: Long, bundle: Bundle, where: String): ByteArray {
        val known = file.path == Spec.MANIFEST || bundle.has(file.path)
        val path = File(bundle.directory, file.path)
        if (!known || start > path.length() - chunk.bytes) {
            throw BundleException("$where: refers to bytes that the base version does not have; do not use this pack")
        }
        return RandomAccessFile(path, "r").use { source ->
            source.seek(start)
            ByteArray(chunk.bytes).also { source.readFully(it) }
        }
    }

    private fun hex(digest: ByteArray): String = digest.joinToString("") { "%02x".format(it) }

    private companion object {
        const val BUFFER = 1 shl 16
    }
}
