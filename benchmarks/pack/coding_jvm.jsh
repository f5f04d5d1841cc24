// CPU seconds that the Android library takes to unpack a pack on this machine's JVM, five times:
//   jshell -R-Xmx128m -R-Dpack=model.edgepack --class-path build/android/engine.jar:build/android-tools/kotlin/lib/kotlin-stdlib.jar benchmarks/pack/coding_jvm.jsh
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
File folder = Files.createTempDirectory("packs").toFile();
for (int i = 0; i < 5; i++) {
    long began = ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
    dev.edgekit.EdgeKit.INSTANCE.unpack(new File(System.getProperty("pack")), new File(folder, "" + i), null, null, (done, total) -> kotlin.Unit.INSTANCE);
    System.out.println((ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime() - began) / 1e9 + " s");
    for (File file : new File(folder, "" + i).listFiles()) file.delete();
}
System.out.println("the last ones are warm; " + folder + " may go");
/exit
